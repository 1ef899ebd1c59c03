from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# Under xdist each worker would start a thread per core of its own; set before anything imports torch.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Operators are traced and compiled within an example, so its time says nothing; the same examples on every run.
hypothesis.settings.register_profile("surgeon", deadline=None, derandomize=True, database=None, max_examples=20)
hypothesis.settings.load_profile("surgeon")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def digits_bundle() -> Path:
    """The sample bundle that comes with the repository."""
    return REPOSITORY / "exported" / "digits"


@pytest.fixture(scope="session")
def digit_photo() -> Path:
    """A handwritten digit for the sample bundle."""
    return REPOSITORY / "exported" / "digit.png"
