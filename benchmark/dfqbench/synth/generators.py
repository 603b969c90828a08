"""GDFQ's two conditional generators (methods.md 2a, released code), for any input size, and their conditions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfqbench.api import InputStats
from dfqbench.api.precision import to_float32
from dfqbench.quant.operators import operator
from dfqbench.synth.sub_pixel import sub_pixel_conv, sub_pixel_norm

WIDTH = 128
"""Channels of the trunk (released code)."""
TAIL_WIDTH = 64
"""Channels before the last convolution (released code)."""
INNER_EPS = 0.8
"""Epsilon of the trunk's second and third BatchNorm (released code; 0.8 was probably meant as a momentum)."""
SLOPE = 0.2
"""Negative slope of the leaky ReLUs (released code)."""
UPSAMPLING = 4
"""Two doublings between the linear layer and the image (released code)."""


@operator
def standardize(x: Tensor, eps: float) -> Tensor:
    """Return (x - mean) / sqrt(var + eps) for each channel of x (N, C, H, W), moments of the batch, var biased."""
    return F.batch_norm(x, None, None, training=True, eps=eps)


def _norm(channels: int, eps: float = 1e-5, *, affine: bool = True) -> nn.BatchNorm2d:
    # The released generators stay in training mode, so running statistics are never used.
    return nn.BatchNorm2d(channels, eps, affine=affine, track_running_stats=False)


class ClassBatchNorm(nn.Module):
    """BatchNorm with a scale and a shift for each class, initially 1 and 0 (GDFQ's ImageNet generator)."""

    def __init__(self, channels: int, classes: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = _norm(channels, eps, affine=False)
        self.scale = nn.Embedding(classes, channels)
        self.shift = nn.Embedding(classes, channels)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Normalise x (N, C, H, W) over the batch, then scale and shift by the classes `labels` (N,)."""
        scale, shift = self.affine(labels)
        return torch.addcmul(shift[..., None, None], self.norm(x), scale[..., None, None])

    def affine(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and shift (N, C) of the classes `labels` (N,)."""
        return self.scale(labels), self.shift(labels)


class _Plain(nn.Module):
    """BatchNorm that ignores the class, with the interface of `ClassBatchNorm`."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = _norm(channels, eps)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002 - the class enters by the embedding
        normalised: Tensor = self.norm(x)
        return normalised

    def affine(self, labels: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002 - as above
        return self.norm.weight.unsqueeze(0), self.norm.bias.unsqueeze(0)


class Generator(nn.Module):
    """(noise, label) -> image, in the teacher's normalised input space.

    Linear to 128 maps of a quarter of the image's size, BatchNorm; twice: nearest upsampling, 3x3 convolution,
    BatchNorm, leaky ReLU; 3x3 convolution, tanh, and a BatchNorm without parameters, which gives each channel mean 0
    and deviation 1 over the batch.

    `embedding` multiplies the noise with an embedding of the label (the CIFAR generator); without it the three inner
    BatchNorms are class-conditional (the ImageNet generator). Sizes that are no multiple of four are resized
    bilinearly before the last BatchNorm (as in KMDFQ for 299).

    It has no running statistics: train and eval mode are equal, and no forward pass changes a buffer.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        image_size: tuple[int, int, int],
        classes: int,
        *,
        latent: int = 100,
        embedding: bool = True,
        extra: int = 0,
        stats: InputStats | None = None,
        sub_pixel: bool = False,
    ) -> None:
        """Build the generator with torch's default initialisation (released code).

        Args:
            image_size: (C, H, W), any size.
            classes: number of classes.
            latent: size of the noise vector.
            embedding: label embedding (True) or class-conditional BatchNorm (False).
            extra: size of a further condition, concatenated to the vector.
            stats: mean and deviation of the output per channel; None: 0 and 1.
            sub_pixel: compute upsampling and convolution together (images equal up to rounding, less work), without
                the convolutions' biases, which BatchNorm subtracts again.
        """
        super().__init__()
        channels, height, width = image_size
        self.size = (height, width)
        # BatchNorm over one image needs more than one position.
        self.base = (max(2, height // UPSAMPLING), max(2, width // UPSAMPLING))
        self.latent = latent
        self.extra = extra
        self.sub_pixel = sub_pixel
        self.embedding = nn.Embedding(classes, latent) if embedding else None
        self.linear = nn.Linear(latent + extra, WIDTH * self.base[0] * self.base[1])

        def norm(features: int, eps: float = 1e-5) -> _Plain | ClassBatchNorm:
            return _Plain(features, eps) if embedding else ClassBatchNorm(features, classes, eps)

        self.norm1 = norm(WIDTH)
        self.conv1 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.norm2 = norm(WIDTH, INNER_EPS)
        self.conv2 = nn.Conv2d(WIDTH, TAIL_WIDTH, 3, padding=1)
        self.norm3 = norm(TAIL_WIDTH, INNER_EPS)
        self.conv3 = nn.Conv2d(TAIL_WIDTH, channels, 3, padding=1)
        self.norm4 = _norm(channels, affine=False)
        identity = stats is None or (not any(stats.mean) and set(stats.std) == {1.0})
        for name in ("mean", "std"):
            values = None if identity else torch.tensor(getattr(stats, name)).view(-1, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self.to(memory_format=torch.channels_last)

    def forward(self, noise: Tensor, labels: Tensor, extra: Tensor | None = None) -> Tensor:
        """Return images (N, C, H, W) for noise (N, latent), labels int64 (N,) and extra (N, extra), if built for it."""
        vector = noise if self.embedding is None else self.embedding(labels) * noise
        if extra is not None:
            vector = torch.cat((vector, extra), 1)
        # The linear layer's outputs are in channels-last order, which needs no copy.
        x: Tensor = self.linear(vector).view(-1, *self.base, WIDTH).permute(0, 3, 1, 2)
        x = self.norm1(x, labels)
        x = self._doubled(x, self.conv1, self.norm2, labels)
        x = self._doubled(x, self.conv2, self.norm3, labels)
        # Under autocast the trunk is bfloat16; images are always float32.
        x = torch.tanh(to_float32(self.conv3(x)))
        if x.shape[2:] != self.size:
            x = F.interpolate(x, size=self.size, mode="bilinear", align_corners=False)
        # For three channels torch's BatchNorm is five times faster on contiguous maps.
        x = x.contiguous()
        x = standardize(x, self.norm4.eps) if self.sub_pixel else self.norm4(x)
        x = x.contiguous(memory_format=torch.channels_last)
        return x if self.mean is None or self.std is None else torch.addcmul(self.mean, x, self.std)

    def _doubled(self, x: Tensor, conv: nn.Conv2d, norm: _Plain | ClassBatchNorm, labels: Tensor) -> Tensor:
        """Apply nearest upsampling by two, the convolution, BatchNorm and leaky ReLU."""
        if self.sub_pixel:
            # BatchNorm subtracts the convolution's bias again, which has no gradient.
            return sub_pixel_norm(sub_pixel_conv(x, conv.weight), *norm.affine(labels), norm.norm.eps, SLOPE)
        x = conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return F.leaky_relu_(norm(x, labels), SLOPE)


@dataclass(frozen=True, slots=True)
class Condition:
    """A batch of inputs of a generator.

    Attributes:
        noise: (N, latent), standard normal.
        labels: int64 (N,).
        extra: (N, extra), a further condition, or None.
    """

    noise: Tensor
    labels: Tensor
    extra: Tensor | None = None


Draw = Callable[[int, torch.Generator], Condition]
"""(batch size, random generator) -> condition, on the generator's device."""


def class_condition(latent: int, classes: int) -> Draw:
    """Draw noise z ~ N(0, I) of size `latent` and label y ~ U{classes} (GDFQ, released code)."""

    def draw(size: int, random: torch.Generator) -> Condition:
        noise = torch.randn((size, latent), generator=random, device=random.device)
        return Condition(noise, torch.randint(0, classes, (size,), generator=random, device=random.device))

    return draw


def paired_condition(latent: int, classes: int, draw_extra: Callable[[int, torch.Generator], Tensor]) -> Draw:
    """Draw pairs with one label and one further condition, but different noise (ACQ; methods.md 4).

    Rows i and i + N // 2 are a pair; the last row of an odd batch has no partner. `draw_extra` draws the further
    condition (N, extra) of a batch.
    """
    plain = class_condition(latent, classes)

    def draw(size: int, random: torch.Generator) -> Condition:
        condition = plain(size, random)
        extra = draw_extra(size, random)
        half = size // 2
        first, rest = slice(0, half), slice(2 * half, size)
        labels = torch.cat((condition.labels[first], condition.labels[first], condition.labels[rest]))
        return Condition(condition.noise, labels, torch.cat((extra[first], extra[first], extra[rest])))

    return draw


def pairs(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the partners, (N // 2, ...) each, of a batch drawn by `paired_condition`."""
    half = len(values) // 2
    return values[:half], values[half : 2 * half]
