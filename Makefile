# `make` prints the targets. Every target sets up its own environment; that takes no time when it is there.
SHELL := /bin/bash
export PYTHONUTF8 := 1
.DEFAULT_GOAL := help
PYTHON ?= python3
TORCH ?=
PAPER ?=
PROFILE ?= cpu
DEVICE ?= auto
JOBS ?= 1
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed$(if $(TORCH),-$(TORCH))
# A name of one of uv's torch backends (cpu, cu126, ...) replaces the pinned CUDA packages by that build.
LOCK := $(if $(TORCH),<(grep -vE '^(nvidia|cuda|triton)' requirements.lock),requirements.lock)
BACKEND := $(if $(TORCH),--torch-backend=$(TORCH))

.PHONY: help setup list data reproduce test test-fast table bench lint new lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: Python 3.11 or newer is needed, $(PYTHON) is older; try make PYTHON=python3.12"; exit 2; }
	@set -e -o pipefail; \
	uv=$$(command -v uv || true); \
	if ! { [ -n "$$uv" ] && "$$uv" --version; } >/dev/null 2>&1; then \
	  uv=$$PWD/.uv/bin/uv; \
	  [ -x "$$uv" ] || { echo "installing uv into .uv/"; $(PYTHON) -m pip install -q --target .uv uv; }; \
	fi; \
	echo "setting up $(VENV) (a few GB the first time)"; \
	[ -x $(BIN)/python ] || "$$uv" venv -q --python $(PYTHON) $(VENV); \
	"$$uv" pip install -q --compile-bytecode --python $(BIN)/python $(BACKEND) -r $(LOCK); \
	"$$uv" pip install -q --compile-bytecode --python $(BIN)/python --no-deps -e .; \
	rm -f $(VENV)/.installed*; touch $@

setup: $(STAMP)  ## environment in .venv from requirements.lock; TORCH=cpu for a build without CUDA
	@echo "ready: $$($(BIN)/python --version), torch $$($(BIN)/python -c 'from importlib.metadata import version; print(version("torch"))')"

list: $(STAMP)  ## all papers: slug, paper, task, modality, state of the results
	@$(BIN)/python -m benchmarks.list

need-paper:
	@[ -n "$(PAPER)" ] || { echo "error: which paper? make $(MAKECMDGOALS) PAPER=..., see make list"; exit 2; }

data: need-paper $(STAMP)  ## PAPER=...: make its stand-in data and say where the real data is
	@$(BIN)/python -m benchmarks.data --paper "$(PAPER)" --profile $(PROFILE)

reproduce: need-paper $(STAMP)  ## PAPER=... [DATA= PROFILE= SEEDS= DEVICE= VARIANTS= NAME= SET= RECORD=1 CHECK=1 JOBS=]
	@$(BIN)/python -m benchmarks.reproduce --paper "$(PAPER)" --profile $(PROFILE) --device $(DEVICE) \
	  $(if $(DATA),--data "$(DATA)") $(if $(NAME),--name "$(NAME)") $(if $(SEEDS),--seeds $(SEEDS)) \
	  $(if $(VARIANTS),--variants "$(VARIANTS)") $(if $(SET),--set $(SET)) --jobs $(JOBS) \
	  $(if $(RECORD),--record) $(if $(CHECK),--check) $(if $(DRY),--dry-run)

test: $(STAMP)  ## all tests, on two cores
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

test-fast: $(STAMP)  ## the tests that take seconds
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow" $(ARGS)

table: $(STAMP)  ## write the tables anew from the ledger; CHECK=1 only compares
	@$(BIN)/python -m benchmarks.table $(if $(CHECK),--check)

bench: $(STAMP)  ## speed, side by side with what one would otherwise call
	@$(BIN)/uv pip install -q --python $(BIN)/python -c requirements.lock -r pyproject.toml --extra bench
	@$(BIN)/python -m benchmarks.speed

lint: $(STAMP)  ## ruff
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

new: need-paper $(STAMP)  ## PAPER=slug: a scaffold that passes the contract tests
	@$(BIN)/python -m benchmarks.new --slug "$(PAPER)"

lock: $(STAMP)  ## resolve the newest versions into requirements.lock
	@$(BIN)/uv pip compile -q --extra dev --no-emit-index-url --no-header -o requirements.lock pyproject.toml

clean:  ## remove what runs and tests have made; the environment stays
	rm -rf runs data build .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
