PYTHON ?= python3
NPROC  ?= 4
ARGS   ?=

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install train test lint types tests test-slow clean

help:
	@echo 'make train       train on $(NPROC) processes (NPROC=); ARGS="model=cnn seed=1" passes hydra overrides'
	@echo 'make test        lint, types and the fast tests; ARGS="-k transport" goes to pytest'
	@echo 'make test-slow   the tests that take minutes'
	@echo 'make install     only make .venv, with PYTHON=$(PYTHON)'
	@echo 'make clean       remove .venv and the caches; runs/ stays'

install: $(STAMP)

# Repeated when pyproject.toml changes. The stamp comes last, so an interrupted install is not taken for a whole one.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "counterflow needs Python 3.11 or newer; '$(PYTHON)' is not. Try: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

# --standalone takes a free port, so several jobs can share a machine; the loopback address, because torchrun waits
# for minutes where the machine's own name does not resolve.
train: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --local-addr=127.0.0.1 --nproc_per_node=$(NPROC) launch/train.py $(ARGS)

test: lint types tests

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(STAMP)
	$(BIN)/mypy

# Most tests wait for processes of their own; those of test-slow measure, and so run one at a time.
tests: $(STAMP)
	$(BIN)/pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal $(ARGS)

test-slow: $(STAMP)
	$(BIN)/pytest -m slow $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src launch tests -name __pycache__ -type d -prune -exec rm -rf {} +
