# `make` prints the targets. Every target sets up its own environment; that takes no time when it is there.
SHELL := /bin/bash
export PYTHONUTF8 := 1
.DEFAULT_GOAL := help
PYTHON ?= python3
TORCH ?=
PROFILE ?= cpu
DEVICE ?= auto
JOBS ?= 1
VENV := .venv
BIN := $(VENV)/bin

# What a user gives reaches the commands as it is, whatever is in it: it is taken by `value`, which expands nothing,
# and travels in the environment, where the recipes quote it. No recipe writes it into a line that a shell reads.
INPUTS := PAPER DATA NAME PROFILE SEEDS VARIANTS DEVICE SET JOBS LENGTHS RECORD CHECK DRY TORCH PYTHON ARGS
ifeq ($(origin NAME),environment)
NAME :=  # Windows' Linux gives every shell the machine's name in NAME
endif
unexport $(INPUTS)
$(foreach name,$(INPUTS),$(eval export GIVEN_$(name) := $$(value $(name))))
# Whether a switch is on: anything but nothing and 0.
on = $(if $(filter-out 0,$(GIVEN_$(1))),$(2))

# A name of one of uv's torch backends (cpu, cu126, ...) replaces the pinned CUDA packages by that build. It becomes
# part of a file's name, so nothing but letters, digits and dots may be in it.
LEFT := $(GIVEN_TORCH)
$(foreach c,a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9 .,$(eval LEFT := $$(subst $(c),,$$(LEFT))))
ifneq ($(LEFT),)
$(error TORCH is the name of a build of torch, as cpu or cu126)
endif
STAMP := $(VENV)/.installed$(if $(GIVEN_TORCH),-$(GIVEN_TORCH))
LOCK := $(if $(GIVEN_TORCH),<(grep -vE '^(nvidia|cuda|triton)' requirements.lock),requirements.lock)
BACKEND := $(if $(GIVEN_TORCH),--torch-backend=$(GIVEN_TORCH))

.PHONY: help setup list data reproduce test test-fast table bench lint new lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

$(STAMP): requirements.lock pyproject.toml
	@"$$GIVEN_PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: Python 3.11 or newer is needed, and $$GIVEN_PYTHON is none; try make PYTHON=python3.12"; exit 2; }
	@set -e -o pipefail; \
	uv=$$(command -v uv || true); \
	if ! { [ -n "$$uv" ] && "$$uv" --version; } >/dev/null 2>&1; then \
	  uv=$$PWD/.uv/bin/uv; \
	  [ -x "$$uv" ] || { echo "installing uv into .uv/"; "$$GIVEN_PYTHON" -m pip install -q --target .uv uv; }; \
	fi; \
	echo "setting up $(VENV) (a few GB the first time)"; \
	[ -x $(BIN)/python ] || "$$uv" venv -q --python "$$GIVEN_PYTHON" $(VENV); \
	"$$uv" pip install -q --compile-bytecode --python $(BIN)/python $(BACKEND) -r $(LOCK); \
	"$$uv" pip install -q --compile-bytecode --python $(BIN)/python --no-deps -e .; \
	rm -f $(VENV)/.installed*; touch $@

setup: $(STAMP)  ## environment in .venv from requirements.lock; TORCH=cpu for a build without CUDA
	@echo "ready: $$($(BIN)/python --version), torch $$($(BIN)/python -c 'from importlib.metadata import version; print(version("torch"))')"

list: $(STAMP)  ## all papers: slug, paper, task, modality, state of the results
	@$(BIN)/python -m benchmarks.list

need-paper:
	@[ -n "$$GIVEN_PAPER" ] || { echo "error: which paper? give PAPER=..., see make list"; exit 2; }

data: need-paper $(STAMP)  ## PAPER=... [PROFILE=]: make its stand-in data and say where the real data is
	@$(BIN)/python -m benchmarks.data --paper="$$GIVEN_PAPER" $${GIVEN_PROFILE:+--profile="$$GIVEN_PROFILE"}

reproduce: need-paper $(STAMP)  ## PAPER=... [PROFILE=study DATA= NAME= VARIANTS= SEEDS= SET= DEVICE= LENGTHS=0 RECORD=1 CHECK=1]
	@$(BIN)/python -m benchmarks.reproduce --paper="$$GIVEN_PAPER" \
	  $${GIVEN_PROFILE:+--profile="$$GIVEN_PROFILE"} $${GIVEN_DEVICE:+--device="$$GIVEN_DEVICE"} \
	  $${GIVEN_DATA:+--data="$$GIVEN_DATA"} $${GIVEN_NAME:+--name="$$GIVEN_NAME"} \
	  $${GIVEN_SEEDS:+--seeds="$$GIVEN_SEEDS"} $${GIVEN_VARIANTS:+--variants="$$GIVEN_VARIANTS"} \
	  $${GIVEN_SET:+--set="$$GIVEN_SET"} $${GIVEN_JOBS:+--jobs="$$GIVEN_JOBS"} $(if $(filter 0,$(GIVEN_LENGTHS)),--no-lengths) \
	  $(call on,RECORD,--record) $(call on,CHECK,--check) $(call on,DRY,--dry-run)

test: $(STAMP)  ## all tests, on two cores; ARGS= for pytest
	@OMP_NUM_THREADS=1 PYTEST_ADDOPTS="$$PYTEST_ADDOPTS $$GIVEN_ARGS" $(BIN)/python -m pytest -n 2 --dist loadgroup

test-fast: $(STAMP)  ## the tests that take seconds
	@OMP_NUM_THREADS=1 PYTEST_ADDOPTS="$$PYTEST_ADDOPTS $$GIVEN_ARGS" $(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

table: $(STAMP)  ## write the tables anew from the ledger; CHECK=1 only compares
	@$(BIN)/python -m benchmarks.table $(call on,CHECK,--check)

bench: $(STAMP)  ## speed, side by side with what one would otherwise call
	@$(BIN)/uv pip install -q --python $(BIN)/python -c requirements.lock -r pyproject.toml --extra bench
	@$(BIN)/python -m benchmarks.speed

lint: $(STAMP)  ## ruff
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

new: need-paper $(STAMP)  ## PAPER=slug: a scaffold that passes the contract tests
	@$(BIN)/python -m benchmarks.new --slug="$$GIVEN_PAPER"

lock: $(STAMP)  ## resolve the newest versions into requirements.lock
	@$(BIN)/uv pip compile -q --extra dev --no-emit-index-url --no-header -o requirements.lock pyproject.toml

clean:  ## remove what runs and tests have made; the environment stays
	rm -rf runs data build .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
