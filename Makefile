PYTHON ?= python3
BIN := .venv/bin

.PHONY: help venv demo test lint bench clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

venv: .venv/.installed ## make .venv with the library, its tests and its checkers

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt -e '.[test,lint]'
	touch $@

demo: venv ## update the weights of a running model on this machine
	$(BIN)/ckpt-transport demo

test: venv ## run the tests
	$(BIN)/python -m pytest

lint: venv ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: venv ## measure, and write build/bench.json
	$(BIN)/python -m benchmarks

clean: ## remove everything that was made here
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
