"""Trains a network of the embedded `digits` target and writes the weights that the wheel carries.

It sees the 1,257 training digits only. The 540 evaluation digits are measured once, after the last step; nothing is
chosen by them: schedule and seed are fixed below, the same for both networks. About one minute on one core:

    python tools/train_digits.py resnet8
    python tools/train_digits.py mobilenet9

`mobilenet9` was chosen because it tells methods apart. Five variants (ReLU or ReLU6, wider, deeper, another last layer)
were trained on 800 of the training digits, quantized, and measured on the other 457, by full precision, `noise` and
`zeroq` alone: no other method had a part in the choice. At `w3a3@deploy` over three seeds, this one gave noise
46.2 ± 5.5 and ZeroQ 60.2 ± 3.1 (full precision 98.7); in the others the two did not differ.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dfqbench.models.digits import ARCHITECTURES
from dfqbench.targets.cards import DEFAULT_CARDS
from dfqbench.targets.evaluation import load_evaluation, normalize
from dfqbench.targets.pixels import open_split
from dfqbench.targets.spec import DatasetSpec

DATASET = DatasetSpec("digits", "digits", None, None, 10)
WEIGHTS = Path(__file__).parent.parent / "benchmark" / "dfqbench" / "models" / "weights"


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a network is trained; fixed before the evaluation images were looked at.

    Attributes:
        seed: of initialisation, order and augmentation.
        epochs: passes over the 1,257 images.
        batch: images in a step.
        learning_rate: peak of a one-cycle schedule of SGD.
        momentum: of SGD.
        weight_decay: of SGD.
        smoothing: of the labels.
        shift: largest shift in pixels, each way.
    """

    seed: int = 0
    epochs: int = 60
    batch: int = 64
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    smoothing: float = 0.05
    shift: int = 1


def shifted(images: Tensor, reach: int, background: float, generator: torch.Generator) -> Tensor:
    """Moves each image by up to `reach` pixels each way; what comes in is background."""
    padded = nn.functional.pad(images, (reach,) * 4, value=background)
    size = images.shape[-1]
    moves = torch.randint(0, 2 * reach + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack([image[:, y : y + size, x : x + size] for image, (y, x) in zip(padded, moves, strict=True)])


def train(name: str, schedule: Schedule, images: Tensor, labels: Tensor, background: float) -> nn.Module:
    """Trains from scratch and returns the network after the last step, in eval mode."""
    torch.manual_seed(schedule.seed)
    generator = torch.Generator().manual_seed(schedule.seed)
    model = ARCHITECTURES[name]()
    steps = -(-len(images) // schedule.batch)
    optimizer = torch.optim.SGD(
        model.parameters(), schedule.learning_rate, schedule.momentum, weight_decay=schedule.weight_decay
    )
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, schedule.learning_rate, epochs=schedule.epochs, steps_per_epoch=steps
    )
    loss = nn.CrossEntropyLoss(label_smoothing=schedule.smoothing)
    for _ in range(schedule.epochs):
        for chosen in torch.split(torch.randperm(len(images), generator=generator), schedule.batch):
            optimizer.zero_grad()
            loss(model(shifted(images[chosen], schedule.shift, background, generator)), labels[chosen]).backward()
            optimizer.step()
            rate.step()
    return model.eval()


def main() -> int:
    """Trains the named network, measures once, writes the weights."""
    names = sys.argv[1:]
    if len(names) != 1 or names[0] not in ARCHITECTURES:
        sys.stderr.write(f"usage: train_digits.py {'|'.join(ARCHITECTURES)}\n")
        return 2
    output = WEIGHTS / f"digits-{names[0]}.safetensors"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    card = DEFAULT_CARDS["digits"]
    split = open_split(DATASET, "train", card)
    images = normalize(next(iter(split.stream(range(len(split.labels)), len(split.labels)))), split.scale, card, "cpu")
    model = train(names[0], Schedule(), images, torch.from_numpy(split.labels), card.lowest[0])
    evaluation = load_evaluation(DATASET, card)
    with torch.inference_mode():
        correct = sum(int((model(x).argmax(1) == y).sum()) for x, y in evaluation.batches(540))
    state = {name: value.contiguous() for name, value in model.state_dict().items() if "num_batches" not in name}
    # One entry only: safetensors writes several in an order that changes from run to run.
    save_file(state, output, {"source": "tools/train_digits.py, Apache-2.0"})
    sys.stdout.write(f"top-1 {100 * correct / evaluation.n:.2f} % of {evaluation.n}; wrote {output}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
