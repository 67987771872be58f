# Everything from a fresh clone: `make lab` opens the workbench on the rehearsal, `make test` runs the tests.
# Needs a Python >= 3.11 (or conda) and a package index; all else goes into .venv.

VENV := .venv
READY := $(VENV)/.ready
READY_TEST := $(VENV)/.ready-test
BIN := $(VENV)/bin
# make JOBS= test: one test after the other
JOBS := --numprocesses 2 --dist loadfile

.PHONY: lab test lint format setup clean

lab: $(READY)
	$(BIN)/jaccl lab $(ARGS)

test: $(READY_TEST) lint
	$(BIN)/python -m pytest $(JOBS) $(ARGS)

lint: $(READY_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY_TEST)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(READY)

# The stamps are made last: an interrupted set-up is done again, a whole one is not.
$(READY): pyproject.toml
	sh .ci/make-venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(READY_TEST): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
