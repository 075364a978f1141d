# Two targets that do everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test

quickstart: $(VENV)/.installed
	$(BIN)/shadowlab check-forward
	$(BIN)/shadowlab overfit --samples 16
	$(BIN)/shadowlab train --precision fp32 --max-steps 200
	@echo
	@echo "Three stages passed. Look at activations and gradients of every layer:"
	@echo "    $(BIN)/shadowlab tensorboard runs      then open http://localhost:6006"
	@echo "Pictures (object / target / one step / error): runs/*/samples/"

test: $(VENV)/.installed-dev
	. $(BIN)/activate && python -m pytest

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,render]"
	@touch $@
