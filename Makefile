# Everything lives in .venv of this checkout; `make install` is redone only when setup.py changes.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install quickstart test test-slow lint clean

install: .venv/.installed

.venv/.installed: setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

quickstart: install
	RESNET_BACKBONES_DATASETS=datasets $(BIN)/python tools/train_net.py --config quickstart_mask_rcnn.yaml

test: install lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m 'not slow'

test-slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv output
