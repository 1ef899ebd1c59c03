"""Imported once, by the server that the sweep's processes are forked from: loads what a first export loads."""

from __future__ import annotations

import os
import tempfile
import warnings

import torch
from torch import nn

import surgeon

os.environ["OMP_NUM_THREADS"] = "1"  # a process with threads is not to be forked
torch.set_num_threads(1)
with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
    warnings.simplefilter("ignore")
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    surgeon.export(network, folder + "/bundle", input_shape=(3, 8, 8), formats=("onnx",), check=False)
