# Every target works from a plain clone: it needs python3.11 (or newer) with venv, and an index.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NAME ?= main_job
PYTEST_ARGS ?=

.PHONY: help demo test test-fast check format docs bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(INSTALLED)  ## optimise the zoo's diffusion transformer; results in build/demo
	$(BIN)/optimize demo --out build/demo --overwrite

test: $(INSTALLED)  ## all tests (those that need a GPU skip themselves without one)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

test-fast: $(INSTALLED)  ## the tests that take less than ten seconds each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow" $(PYTEST_ARGS)

check: $(INSTALLED)  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p optimize

format: $(INSTALLED)  ## format the code and apply the safe lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(INSTALLED)  ## gather the documentation in build/docs, a page per pass included
	$(BIN)/python docs/build.py

bench: $(INSTALLED) $(VENV)/.benchmarks  ## run benchmarks/$(NAME).py; results in build/bench
	$(BIN)/python benchmarks/$(NAME).py --out build/bench/$(NAME).json

clean:  ## remove what the targets made, but not .venv
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis

# torch first and pinned: asked for by range, or by another package, it is a CUDA build of gigabytes.
$(INSTALLED): pyproject.toml setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "make: found no python3, expected 3.11 or newer" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[compile,hf,rtx,sign,text,tune,zoo,dev]'
	touch $@

$(VENV)/.benchmarks: $(wildcard benchmarks/requirements.txt) | $(INSTALLED)
	test ! -f benchmarks/requirements.txt || \
		$(BIN)/pip install --quiet --constraint constraints.txt -r benchmarks/requirements.txt
	touch $@
