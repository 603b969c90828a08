"""Made `stripes.npz` and `tiny.safetensors`; run it in this folder to make them again."""

from __future__ import annotations

import numpy as np
import torch
from dfqbench_example.networks import build
from safetensors.torch import save_file


def stripes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy stripes (count, 8, 8, 3), uint8, and whether they are vertical."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    phase = random.uniform(0, 2 * np.pi, (count, 1, 1, 3))
    period = random.uniform(2.5, 6, (count, 1, 1, 1))
    position = np.arange(8)
    along = np.where(labels[:, None, None] == 1, position[None, None, :], position[None, :, None])[..., None]
    wave = 0.5 + 0.2 * np.sin(2 * np.pi * along / period + phase) + random.normal(0, 0.15, (count, 8, 8, 3))
    return (wave.clip(0, 1) * 255).astype(np.uint8), labels.astype(np.int64)


if __name__ == "__main__":
    x, y = stripes(200, seed=1)
    np.savez_compressed("stripes.npz", x=x, y=y)
    torch.manual_seed(0)
    network = build("tiny", classes=2, in_channels=3)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for step in range(150):
        images, labels = stripes(64, seed=1000 + step)
        inputs = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
        loss = torch.nn.functional.cross_entropy(network(inputs), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_file(network.state_dict(), "tiny.safetensors")
