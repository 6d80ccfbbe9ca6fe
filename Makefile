# One verb, one command. Everything is made inside the project: .venv/, var/.

PYTHON ?= python3
VENV ?= .venv
# Most tests wait for processes: so many at once keep two processors busy. Who has nothing
# left to do takes tests over from another, so that all end at about the same time.
TESTERS ?= 5
BIN := $(VENV)/bin
# Two that set up at the same time would disturb each other, so one waits. The lock is on
# this file, and lasts as long as the command.
ALONE := $(PYTHON) -c 'import fcntl, os, signal, sys; \
  signal.signal(signal.SIGINT, signal.SIG_DFL); lock = os.open("Makefile", os.O_RDONLY); \
  fcntl.flock(lock, fcntl.LOCK_EX); os.set_inheritable(lock, True); \
  os.execvp(sys.argv[1], sys.argv[1:])'
PIP_INSTALL := $(ALONE) $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: run test check format bench chaos clean

run: $(VENV)/.installed ## start the manager and the web workers
	@$(BIN)/python start_web.py

test: $(VENV)/.tools ## run the tests
	@$(BIN)/python -m pytest -q -n $(TESTERS) --dist worksteal

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

# pip comes last: where an interruption has left none, all is begun anew.
$(VENV)/bin/pip:
	@echo "Setting up $(VENV) (once; about half a minute) ..."
	@$(ALONE) sh -c 'test -e $@ || $(PYTHON) -m venv --clear $(VENV)'

$(VENV)/.installed: setup.cfg pyproject.toml | $(VENV)/bin/pip
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
