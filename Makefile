PYTHON ?= python3
NPROC  ?= 4
ARGS   ?=
TORCH  ?=

# A torch other than the pinned one has a virtual environment of its own, so that .venv stays as it is. There torch's own
# metadata choose what goes with it: torchvision, triton, the CUDA packages, setuptools.
VENV        := .venv$(if $(TORCH),-$(TORCH))
BIN         := $(VENV)/bin
STAMP       := $(VENV)/.installed
TOOLS       := $(VENV)/.installed-tools
CONSTRAINTS := $(if $(TORCH),$(VENV)/)constraints.txt
SWAPPED     := ^(torch|torchvision|triton|setuptools|nvidia-.*|cuda-.*)==

.DEFAULT_GOAL := help
.PHONY: help install train text test lint types tests test-slow stress gpu docs clean

help:
	@echo 'make train       train on $(NPROC) processes (NPROC=); ARGS="model=cnn seed=1" passes hydra overrides'
	@echo 'make text        train a language model of bytes on the source of Python for two minutes, and have it write'
	@echo 'make test        lint, types and the fast tests; ARGS="-k transport" goes to pytest'
	@echo 'make test-slow   the tests that take minutes'
	@echo 'make stress      the campaigns of tests/stress, which take hours: kills, fuzzing, hostile ports, costs'
	@echo 'make gpu         the checks that need a GPU, into gpu.json; skipped where there is none'
	@echo 'make docs        the documentation, into site/; every warning and every broken link is an error'
	@echo 'make install     only make .venv, with PYTHON=$(PYTHON)'
	@echo 'TORCH=2.11       with any of these: another torch, in .venv-2.11; pyproject.toml says which are supported'
	@echo 'make clean       remove .venv* and the caches; runs/ stays'

install: $(STAMP)

# Repeated when the dependencies change. The stamp comes last, so an interrupted install is not taken for a whole one.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "counterflow needs Python 3.11 or newer; '$(PYTHON)' is not. Try: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH),{ grep -vE '$(SWAPPED)' constraints.txt; echo 'torch==$(TORCH).*'; } > $(CONSTRAINTS))
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable .
	@touch $@

# What only tests and the documentation need, and who trains need not wait for.
$(TOOLS): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[test,docs]'
	@touch $@

# --standalone takes a free port, so several jobs can share a machine; the loopback address, because torchrun waits
# for minutes where the machine's own name does not resolve.
train: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --local-addr=127.0.0.1 --nproc_per_node=$(NPROC) launch/train.py $(ARGS)

# Small enough for two minutes on two cores.
text: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --local-addr=127.0.0.1 --nproc_per_node=$(NPROC) launch/train.py \
	    experiment=lm scale=cpu hydra.mode=RUN blocks=4 algorithm=bll model.layers=4 model.width=96 model.heads=3 \
	    model.hidden=192 train.steps=250 run.dir=runs/text-$(shell date +%H%M%S) $(ARGS)
	$(BIN)/counterflow generate "$$(ls -dt runs/text-* | head -1)" --prompt "def " --tokens 400

# Types are checked with the pinned torch only: its annotations differ between versions.
test: lint $(if $(TORCH),,types) tests

lint: $(TOOLS)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(TOOLS)
	$(BIN)/mypy

# Most tests wait for processes of their own; those of test-slow measure, and so run one at a time.
tests: $(TOOLS)
	$(BIN)/pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal $(ARGS)

test-slow: $(TOOLS)
	$(BIN)/pytest -m slow $(ARGS)

stress: $(TOOLS)
	$(BIN)/pytest -m stress tests/stress $(ARGS)

# Under ten minutes on one GPU.
gpu: $(STAMP)
	$(BIN)/python -m tests.gpu.checks --out gpu.json $(ARGS)

# The site has the tree of the repository, so that one link leads to the same page in both.
docs: $(TOOLS)
	rm -rf .site
	mkdir .site
	ln -s $(addprefix ../,README.md CHANGELOG.md CONTRIBUTING.md LICENSE docs examples launch results) .site
	mkdir .site/tests
	ln -s ../../tests/README.md .site/tests
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf site .site .venv .venv-* .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src launch tests -name __pycache__ -type d -prune -exec rm -rf {} +
