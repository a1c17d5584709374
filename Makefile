# `make demo` and `make test` work on a machine that has Python and a package index, and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# What the lowest versions are tested on; and the version of torch there. It is the lowest that this
# run tests, not the lowest that pyproject.toml admits, of which not every index has a build for CPUs:
# `make audit-minimal MINIMAL_TORCH=2.6.0` where yours does.
MINIMAL_TESTS := tests/test_loading.py tests/trainers/test_resuming.py tests/trainers/test_contract.py \
	tests/models/test_pretrained.py tests/models/test_theseus.py tests/cli/test_commands.py
# Old libraries call what the newer ones below them have deprecated, and leave files open: no business
# of this run.
MINIMAL_TORCH ?= 2.13.0

.PHONY: demo test lint slow docs audit audit-minimal audit-advisories clean help

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

# Material announces its successor on every run; the variable leaves that out.
docs: $(VENV)/.installed  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

audit: audit-minimal audit-advisories  ## the lowest versions pass; the pinned ones have no known holes

audit-minimal: $(VENV)/.installed
	$(PYTHON) -m venv .venv-minimal
	$(BIN)/python tools/lowest_versions.py torch=$(MINIMAL_TORCH) > .venv-minimal/lowest.txt
	.venv-minimal/bin/pip install --quiet --constraint .venv-minimal/lowest.txt --editable . \
		hypothesis pytest pytest-timeout
	.venv-minimal/bin/python -m pytest -W ignore::DeprecationWarning \
		-W ignore::ResourceWarning -W ignore::pytest.PytestUnraisableExceptionWarning $(MINIMAL_TESTS)

# Asks a service on the network. --strict: a package that it could not look up is a failure, not silence.
audit-advisories:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet pip-audit
	.venv-audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

clean:
	rm -rf $(VENV) .venv-minimal .venv-audit site demo-output .pytest_cache .mypy_cache .ruff_cache
