# `make` alone lists the targets. Everything is installed into .venv; bundles and pictures go to exported/.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# One worker runs a whole file, so that what its tests share is made once.
PYTEST := $(BIN)/python -m pytest -q -n auto --dist loadfile

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv check test integration zoo sweep gpu-check demo app readme-pictures evaluate clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: .venv/dev  ## set up .venv with everything that the other targets need

check: .venv/dev  ## lint, types and the fast tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST)

test: .venv/dev  ## the fast tests: what .ci/run calls
	@$(PYTEST) --durations=25 2>&1

integration: .venv/dev  ## the tests that need npm, CMake, node or Chromium, and the README's conversions
	$(PYTEST) -m "integration and not slow"

zoo: .venv/dev  ## the slow tests: whole networks
	$(PYTEST) -n 0 -m slow -s

sweep: .venv/dev  ## convert every architecture of tests/sweep.tsv, hours; resumes; writes docs/coverage.md
	@$(PIP) -e '.[convert,dev,sweep]'
	$(BIN)/python -m tests.sweep

gpu-check:  ## on a GPU: convert, verify and time four networks there in several ways; uses PYTHON as it is, with its torch
	$(PYTHON) -m tests.gpu_check

# ---- The demonstration: EfficientNet-Lite0 with its ImageNet weights, on photos that come with Python packages.

BUNDLE := exported/efficientnet_lite0
HARD := $(BUNDLE)-hard
data_of = $(shell $(BIN)/python -c 'import importlib.util as i; print(*i.find_spec("$(1)").submodule_search_locations)')/data
LABELLED = $(call data_of,foolbox)
# Of the twenty, by number and ImageNet class: bald eagle, spoonbill, Dalmatian, strawberry, jeep.
FIGURE := 17_22 14_129 16_251 04_949 06_609

demo: .venv/demo  ## convert EfficientNet-Lite0 and draw its pullbacks on labelled photos
	@echo "[2/5] Converting EfficientNet-Lite0, ImageNet weights, and verifying what was written"
	@$(BIN)/surgeon export efficientnet_lite0 -o $(BUNDLE)
	@echo "[3/5] Once more with hard gates, to compare with: the ordinary gradient"
	@$(BIN)/surgeon export efficientnet_lite0 --gate hard --formats onnx -o $(HARD)
	@echo "[4/5] Five-step ascents on 20 labelled photos, each towards what the network sees in it"
	@$(BIN)/surgeon run $(BUNDLE) "$(LABELLED)"/imagenet_*.jpg --steps 5 -o exported/demo
	@echo "[5/5] The grid: $(words $(FIGURE)) photos, each towards the class of each; ordinary gradients beneath"
	@$(BIN)/surgeon figure grid $(BUNDLE) $(FIGURE:%="$(LABELLED)/imagenet_%.jpg") --against $(HARD) --steps 5 --clip 0.5 -o exported/demo.png
	@echo
	@echo "Bundle:  $(BUNDLE)/"
	@echo "Photos:  exported/demo/  (clean, perturbed, difference and pullback of each)"
	@echo "Figure:  exported/demo.png"

# Photos that anyone may pass on: a cat (CC0), a rocket and a motorcycle (public domain).
README_PHOTOS := chelsea.png rocket.jpg motorcycle_left.png
UNIT_PHOTOS := chelsea.png rocket.jpg

readme-pictures: .venv/demo  ## draw the pictures of README and docs again (after `make demo`)
	$(BIN)/surgeon figure grid $(BUNDLE) $(README_PHOTOS:%="$(call data_of,skimage)/%") --against $(HARD) --steps 5 --clip 0.5 --side 144 -o .github/demo.jpg
	$(BIN)/surgeon figure steps $(BUNDLE) $(README_PHOTOS:%="$(call data_of,skimage)/%") --steps 0,1,2,5,10,20 --side 128 -o .github/steps.jpg
	$(BIN)/surgeon figure temperatures $(BUNDLE) $(README_PHOTOS:%="$(call data_of,skimage)/%") --temperatures 0.03,0.1,0.3,1,3 --clip 0.5 --side 128 -o .github/temperatures.jpg
	$(BIN)/surgeon export efficientnet_lite0 --at _blocks.10 --formats onnx -o $(BUNDLE)-blocks.10
	$(BIN)/surgeon figure units $(BUNDLE)-blocks.10 $(UNIT_PHOTOS:%="$(call data_of,skimage)/%") --count 5 --clip 0.5 --side 112 -o .github/units.jpg
	$(BIN)/surgeon calibrate $(BUNDLE) $(README_PHOTOS:%="$(call data_of,skimage)/%") --side 90 --strip .github/strip.jpg

app: .venv/demo  ## the demonstration in a browser: writes exported/app and serves it (after `make demo`)
	@$(BIN)/surgeon app $(BUNDLE) $(README_PHOTOS:%=--photo "$(call data_of,skimage)/%") --title "Excitation pullbacks" -o exported/app --serve

evaluate: .venv/demo  ## the table of docs/faithfulness.md: pullbacks as explanations, beside other gates (after `make demo`; an hour)
	@$(PIP) -e '.[plot]'
	$(BIN)/surgeon export efficientnet_lite0 --gate guided --formats onnx -o $(BUNDLE)-guided
	$(BIN)/surgeon evaluate $(BUNDLE) "$(LABELLED)"/imagenet_*.jpg --temperature 1 --temperature 0.55 --against $(HARD) --against $(BUNDLE)-guided --plot exported/evaluation.png

# ---- The environment, made once. The demonstration needs no linters, and the tests need no photos.

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "surgeon needs Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv .venv

.venv/dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing torch, ONNX Runtime and the development tools into .venv (once; some minutes)"
	@$(PIP) -e '.[browser,convert,demo,dev]'
	@touch $@

.venv/demo: pyproject.toml constraints.txt | .venv/bin/python
	@echo "[1/5] Installing torch, ONNX Runtime, the network's weights and the photos into .venv (once; some minutes)"
	@$(PIP) -e '.[convert,demo]'
	@$(PIP) --no-deps foolbox  # for its photos alone
	@touch $@

clean:  ## remove .venv and every cache; bundles stay
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find surgeon tests -name __pycache__ -type d -exec rm -rf {} +
