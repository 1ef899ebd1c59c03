#!/usr/bin/env bash
# torch.export calls copies of a module that has two names: hooks on it are handed an object that is not the module.
#
# A network whose `first` and `second` are one Linear is exported. A hook registered on that module is called, at both
# places, with a module for its first argument that is another object, though it holds the same parameter. What a hook
# looks up or keeps by the identity of the module, such as its name in a dictionary, is not found. With one name it is
# the module itself, and so it is when the network is called without torch.export.
#
# Expected: the hook is handed the module that it was registered on.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
cat > finding.py <<'END'
from __future__ import annotations

import json
import sys

RECORD = {
    "one name, called": [True],
    "one name, exported": [True],
    "two names, called": [True, True],
    "two names, exported": [False, False],
    "two names, exported: the same parameter": [True, True],
}


def observe() -> dict[str, list[bool]]:
    """Whether what a hook is handed is the module that it was registered on."""
    import torch

    class Network(torch.nn.Module):
        def __init__(self, shared):
            super().__init__()
            self.first = torch.nn.Linear(3, 3)
            self.second = self.first if shared else torch.nn.Linear(3, 3)

        def forward(self, x):
            return self.second(self.first(x))

    def handed(shared: bool, exported: bool, parameter: bool = False) -> list[bool]:
        network, example, seen = Network(shared), torch.ones(2, 3), []
        own = network.first

        def hook(module: torch.nn.Module, _: object) -> None:
            seen.append(module.weight is own.weight if parameter else module is own)

        own.register_forward_pre_hook(hook)
        if exported:
            torch.export.export(network, (example,))
        else:
            network(example)
        return seen

    return {
        "one name, called": handed(shared=False, exported=False),
        "one name, exported": handed(shared=False, exported=True),
        "two names, called": handed(shared=True, exported=False),
        "two names, exported": handed(shared=True, exported=True),
        "two names, exported: the same parameter": handed(shared=True, exported=True, parameter=True),
    }


if __name__ == "__main__":
    seen = json.loads(json.dumps(observe()))
    record = json.loads(json.dumps(RECORD))
    changed = [name for name in {**record, **seen} if seen.get(name) != record.get(name)]
    for name, value in seen.items():
        print(f"{name}: {value}")
    for name in changed:
        print(f"changed: {name} was {record.get(name)}")
    print("Changed" if changed else "As recorded, with torch==2.14.1, numpy==2.4.6")
    sys.exit(bool(changed))
END
venv/bin/python -E -s finding.py
