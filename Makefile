# On a fresh machine: `make quickstart` trains, `make check` and `make test` prove a change, `make test-all` a release,
# `make docs` builds the site.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: quickstart check test test-all docs reference

quickstart: $(VENV)/.installed
	$(BIN)/shadowlab check-forward
	$(BIN)/shadowlab overfit --samples 16
	$(BIN)/shadowlab train --precision fp32 --max-steps 200
	@echo
	@echo "Three stages passed. Activate the environment, then look at the activations and gradients of every layer:"
	@echo "    source $(BIN)/activate"
	@echo "    shadowlab tensorboard latest    then open http://localhost:6006"
	@echo "Pictures (object / target / one step / error): runs/*/samples/"

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	. $(BIN)/activate && python -m pytest --quiet -n 0 tests/test_house.py

test: $(VENV)/.installed-dev
	. $(BIN)/activate && python -m pytest -m "not slow"

test-all: $(VENV)/.installed-dev
	. $(BIN)/activate && python -m pytest

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "the site: site/index.html"

reference: $(VENV)/.installed
	$(BIN)/python -m scripts.reference
	$(BIN)/python -m diagnostics.records.document > docs/records.md

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable ".[dev,render,export,demo,lightning,trainer,low-memory,wandb,mlflow]"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) --editable ".[docs]"
	@touch $@
