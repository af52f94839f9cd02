# `make demo` and `make test` create the virtual environment if there is none.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install demo test lint types kernels-report kernels-predictions gpu clean

help:
	@echo "make demo    train MaskReID on the shards of this repository and rank their gallery"
	@echo "make test    run the tests"
	@echo "make lint    ruff, format and rules"
	@echo "make types   mypy"
	@echo "make kernels-report  compile every Triton program ahead of time: limits, predicted times (OUTPUT=FILE.md)"
	@echo "make kernels-predictions  what a GPU is predicted to measure, for the Triton of PYTHON"
	@echo "make gpu     on a CUDA machine: the kernels' tests and figures (kernels/bench/GPU.md)"
	@echo "make clean   remove the virtual environment and the runs"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/maskreid demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -q --durations=10

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

kernels-report: $(INSTALLED)
	env -u TRITON_INTERPRET $(BIN)/python -m maskreid_kernels.bench ahead-of-time $(if $(OUTPUT),--output $(OUTPUT))

kernels-predictions:
	env -u TRITON_INTERPRET PYTHONPATH=kernels $(PYTHON) -m maskreid_kernels.bench ahead-of-time --predictions

# Needs no environment of its own: torch, Triton, NumPy and pytest of the machine's Python.
gpu:
	$(PYTHON) kernels/bench/gpu.py

clean:
	rm -rf $(VENV) runs
