from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.digits import Digits, digits


def test_reads_the_photo_that_comes_with_it(digit_photo: Path) -> None:
    pixels = np.asarray(Image.open(digit_photo).convert("RGB"), np.float32) / 127.5 - 1
    assert pixels.shape == (32, 32, 3)
    probabilities = digits()(torch.from_numpy(pixels).permute(2, 0, 1)[None]).softmax(1)[0]
    assert Digits.labels[int(probabilities.argmax())] == "seven"
    assert probabilities.max() > 0.9


def test_is_small_and_has_seen_data() -> None:
    network = digits()
    assert not network.training
    assert sum(parameter.numel() for parameter in network.parameters()) <= 12_000
    assert all(norm.running_var.std() > 0.01 for norm in network.features if isinstance(norm, torch.nn.BatchNorm2d))
