# `make run` and `make test` set everything up by themselves. What each target does: `make help`.
.DEFAULT_GOAL := help
.PHONY: help setup setup-kernels run test lint claims bench faults gpu wheels report notebooks tables lock clean

DEVICE ?= $(shell cat .venv/.device 2>/dev/null || echo cpu)
CONFIG ?= experiments/gla.py
ARGS   ?=
PAPER  ?= --all
JOBS   ?= logical

PY    := .venv/bin/python
READY := .venv/.ready-$(DEVICE)
# Tests that load the compilers of other devices have processes of their own: beside them JAX once crashed in a later test.
PYTEST = $(PY) -m pytest -n $(JOBS) --maxprocesses=8 --dist=worksteal --durations=20

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

$(READY): requirements.lock pyproject.toml scripts/setup.sh
	@PYTHON="$(PYTHON)" sh scripts/setup.sh $(DEVICE)

setup: $(READY)  ## Only set up .venv: make setup [DEVICE=cpu|cuda13|tpu] [PYTHON=/path/to/python3.12]
	@echo "Ready: .venv, for $(DEVICE)."

setup-kernels: $(READY)  ## Also the compilers for TPU and Hopper, for the tests of kernels (1.1 GB)
	@sh scripts/setup_kernels.sh
	@echo "Ready: .venv/kernels-compile."

run: $(READY)  ## Train the main job: make run [CONFIG=experiments/gla.py:variant] [ARGS="--config.train.steps=100"]
	@$(PY) -m paperlab.run --config=$(CONFIG) $(ARGS)

lint: $(READY)  ## Lint, format check and types
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

test: lint  ## Lint, types and the whole test suite: make test [ARGS="tests/test_house.py"] [JOBS=2]
ifeq ($(ARGS),)
	@$(PYTEST) -m "not compilers"
	@$(PYTEST) -m compilers
else
	@$(PYTEST) $(ARGS)
endif

claims: $(READY)  ## Run the papers' claims: make claims [PAPER="gla"] [ARGS="--only=1"]
	@$(PY) -m paperlab.claims $(PAPER) $(ARGS)

bench: $(READY)  ## Measure speed, as ratios: make bench [ARGS="step data"]
	@$(PY) -m paperlab.bench $(ARGS)

faults: $(READY)  ## Kill, damage and resume real runs: make faults [ARGS="--rounds=20 --seed=1"]
	@$(PY) -m tests.faults $(ARGS)

# A GPU machine without a network keeps the Python that it has: $(PYTHON), or the first that has JAX.
gpu:  ## All that needs an NVIDIA GPU, in 9 minutes, resumable: make gpu [ARGS="--quick"] [PYTHON=python3]
	@for python in $(PYTHON) $(PY) python3; do \
		if $$python -c 'import jax' 2>/dev/null; then exec $$python scripts/gpu.py $(ARGS); fi; \
	done; echo "make gpu: no Python here has JAX; make setup DEVICE=cuda13, or PYTHON=/path/to/one" >&2; exit 1

wheels: $(READY)  ## Download into ./wheels what a GPU machine without a network lacks
	@$(PY) scripts/wheels.py $(ARGS)

report: $(READY)  ## Write report.html: runs, claims, benchmarks, faults: make report [ARGS="runs/a --out=x.html"]
	@$(PY) -m paperlab.report $(ARGS)

notebooks: $(READY)  ## Execute every notebook
	@$(PY) scripts/notebooks.py $(ARGS)

tables: $(READY)  ## Write the generated tables of README.md and WORKSPACE.md
	@$(PY) -m paperlab.tables $(ARGS)

lock: pyproject.toml  ## Pin the newest versions in requirements.lock (needs uv)
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.12 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate --upgrade --quiet --output-file requirements.lock

clean:  ## Remove caches and .venv; runs/ and results/ stay
	@rm -rf .venv .cache build dist *.egg-info
	@find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
