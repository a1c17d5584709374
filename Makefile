# `make demo` and `make test` work on a machine that has Python and a package index, and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint slow clean help

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed  ## compress a model on the built-in tasks and print what it cost and gained
	$(BIN)/kdnlp demo

test: $(VENV)/.installed lint  ## lint, types and the test suite
	$(BIN)/pytest -n auto --dist loadfile

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

slow: $(VENV)/.installed  ## the checks that need minutes or real data
	$(BIN)/pytest -m slow

clean:
	rm -rf $(VENV) demo-output .pytest_cache .mypy_cache .ruff_cache
