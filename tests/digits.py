"""A small network that reads handwritten digits: the source of the sample bundle.

    surgeon export tests.digits:digits -o exported/digits

`python -m tests.digits` trains it again, on scikit-learn's copy of the UCI digits, and needs scikit-learn for that.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_suffix(".npz")
PHOTO = Path(__file__).parent.parent / "exported" / "digit.png"
SIDE = 32


class Digits(nn.Module):
    """Logits [N, 10] of RGB images [N, 3, 32, 32] in [-1, 1]: dark ink on light paper, or the reverse."""

    input_shape = (3, SIDE, SIDE)
    labels = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)),
            nn.MaxPool2d(3, stride=2, padding=1),
            *(nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True)),
            nn.MaxPool2d(2),
            *(nn.Conv2d(24, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)),
        )
        self.head = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image).mean(dim=(2, 3)))


def digits() -> Digits:
    """The trained network, in eval mode."""
    network = Digits()
    with np.load(WEIGHTS) as stored:
        network.load_state_dict({name: torch.from_numpy(stored[name].astype(np.float32)) for name in stored.files})
    return network.eval()


def train(epochs: int = 100, seed: int = 0) -> None:
    """Train, write WEIGHTS and PHOTO, and say how many of the held-out digits were read right."""
    from sklearn.datasets import load_digits

    torch.manual_seed(seed)
    data = load_digits()
    ink = torch.from_numpy(data.images).float()[:, None] / 16  # [1797, 1, 8, 8], 1 where there is ink
    images, classes = F.interpolate(ink, size=24, mode="bicubic").clamp(0, 1), torch.from_numpy(data.target)
    images = F.pad(images, [(SIDE - 24) // 2] * 4)
    order = torch.randperm(len(images))
    held_out, seen = order[:450], order[450:]

    network = Digits().train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=1e-2)
    batches = math.ceil(len(seen) / 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=epochs * batches)
    for epoch in range(epochs):
        losses = []
        for chosen in seen[torch.randperm(len(seen))].split(64):
            loss = F.cross_entropy(network(_photographed(images[chosen])), classes[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1} of {epochs}: loss {np.mean(losses):.3f}", flush=True)

    counters = {name for name in network.state_dict() if name.endswith("num_batches_tracked")}
    state = {name: value for name, value in network.state_dict().items() if name not in counters}
    np.savez_compressed(WEIGHTS, **{name: value.numpy().astype(np.float16) for name, value in state.items()})

    trained, paper = digits(), 1 - 2 * images[held_out].expand(-1, 3, -1, -1)
    right = trained(paper).argmax(1) == classes[held_out]
    print(f"{right.float().mean():.1%} of {len(right)} held-out digits on paper")
    photographed = trained(_photographed(images[held_out])).argmax(1) == classes[held_out]
    print(f"{photographed.float().mean():.1%} of them moved, coloured and noisy")
    seven = paper[(classes[held_out] == 7) & right][0]
    Image.fromarray(((seven.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()).save(PHOTO, optimize=True)


def _photographed(ink: Tensor) -> Tensor:
    """`ink` [N, 1, 32, 32] in [0, 1], turned, moved, in two random colours with noise: [N, 3, 32, 32] in [-1, 1]."""
    count = len(ink)
    turn, scale = (torch.rand(count) - 0.5) * 0.4, 0.8 + 0.4 * torch.rand(count)
    shift = (torch.rand(count, 2) - 0.5) * 0.3
    rows = torch.stack(
        [
            torch.stack([turn.cos() * scale, -turn.sin() * scale, shift[:, 0]], 1),
            torch.stack([turn.sin() * scale, turn.cos() * scale, shift[:, 1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(rows, list(ink.shape), align_corners=False)
    moved = F.grid_sample(ink, grid, align_corners=False)
    dark, light = -1 + 0.6 * torch.rand(count, 3, 1, 1), 1 - 0.6 * torch.rand(count, 3, 1, 1)
    swapped = torch.rand(count, 1, 1, 1) < 0.3
    stroke, paper = torch.where(swapped, light, dark), torch.where(swapped, dark, light)
    return (paper + (stroke - paper) * moved + 0.1 * torch.randn(count, 3, SIDE, SIDE)).clamp(-1, 1)


if __name__ == "__main__":
    train()
