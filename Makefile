# One verb, one command. Everything is made inside the project: .venv/, var/.

PYTHON ?= python3
VENV ?= .venv
# Most tests wait for processes: so many at once take less than half the time.
TESTERS ?= 3
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: run test check format bench chaos clean

run: $(VENV)/.installed ## start the manager and the web workers
	@$(BIN)/python start_web.py

test: $(VENV)/.tools ## run the tests
	@$(BIN)/python -m pytest -q -n $(TESTERS)

check: $(VENV)/.tools ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.tools
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.rivals ## compare speed with the alternatives, in one run
	@$(BIN)/python -m benchmarks

chaos: $(VENV)/.tools ## kill everything at random for MINUTES (5), then check history
	@$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED))

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@echo "Setting up $(VENV) (once; about half a minute) ..."
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg pyproject.toml | $(VENV)/bin/python
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.rivals: $(VENV)/.installed
	@echo "Installing what the benchmarks compare with (once) ..."
	@$(PIP_INSTALL) --editable '.[bench]'
	@touch $@

$(VENV)/.tools: $(VENV)/.installed
	@echo "Installing what the tests and checks need (once; about half a minute) ..."
	@$(PIP_INSTALL) --editable '.[test,check]'
	@touch $@
