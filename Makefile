# Everything is installed in .venv of this checkout; `make install` runs again only when setup.py changes.
PYTHON ?= python3
BIN := .venv/bin

# An environment with detectron2, for test-detectron2; docs/detectron2.md says how to make one.
DETECTRON2_PYTHON ?= python3

# Inputs of each family that `make fuzz` draws, and their seed.
FUZZ_EXAMPLES ?= 850
FUZZ_SEED ?= $(shell date +%s)

.PHONY: install quickstart test test-slow test-gpu fuzz test-detectron2 lint clean

install: .venv/.installed

.venv/.installed: setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

quickstart: install
	RESNET_BACKBONES_DATASETS=datasets $(BIN)/resnet-backbones train --config quickstart_mask_rcnn.yaml

test: install lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m 'not slow'

test-slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow

test-gpu: install
	$(BIN)/python -c "import torch; torch.zeros(1, device='cuda')" && \
	$(BIN)/python -m pytest tests/gpu

fuzz: install
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --hypothesis-seed=$(FUZZ_SEED) tests/fuzz

test-detectron2:
	OMP_NUM_THREADS=1 $(DETECTRON2_PYTHON) -c "import detectron2" && \
	OMP_NUM_THREADS=1 $(DETECTRON2_PYTHON) -m pytest tests/hosts/test_detectron2_*.py tests/detectors/test_detectron2.py tests/benchmarks/test_detectron2_peer.py tests/cli/test_converting.py tests/test_docs.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv output
