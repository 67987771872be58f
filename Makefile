# Everything from a fresh clone: `make lab` opens the workbench on the rehearsal, `make test` runs the tests.
# Needs a package index, and a Python >= 3.11 (or conda); all else goes into .venv, but for a few programs of
# the system (.ci/system-tools): what can be installed without asking is, and what cannot is said.

VENV := .venv
READY := $(VENV)/.ready
READY_TEST := $(VENV)/.ready-test
BIN := $(VENV)/bin
# make JOBS= test: one test after the other
JOBS := --numprocesses 3 --dist loadfile --no-loadscope-reorder

# A test that fails is repeated alone, and named: it passes only there if it is a race, which is a defect too.
REPEAT = echo "Repeating the failed tests alone, up to the first that fails again:" && \
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures none --maxfail 1 && \
	echo "The failures above are races: these tests passed alone. Please report them."

# The tests start hundreds of Python processes: each would compile all modules again without their bytecode.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: lab test test-slow test-fast lint format docs setup clean

lab: $(READY)
	@sh .ci/system-tools $(VENV) rsync ssh
	$(BIN)/jaccl lab $(ARGS)

test: $(READY_TEST) lint
	@sh .ci/system-tools $(VENV) rsync ssh sshd libatomic chromium
	$(BIN)/python -m pytest $(JOBS) $(ARGS) || { [ $$? = 1 ] && $(REPEAT); }

test-slow: $(READY_TEST)
	$(BIN)/python -m pytest $(JOBS) -m slow $(ARGS)

test-fast: $(READY_TEST)
	$(BIN)/python -m pytest $(JOBS) -m fast $(ARGS)

lint: $(READY_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY_TEST)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY_TEST)
	$(BIN)/python -m jaccl_kernel.cli.docs > docs/cli.md

setup: $(READY)

# The stamps are made last: an interrupted set-up is done again, a whole one is not.
$(READY): pyproject.toml jaccl_kernel/__init__.py
	sh .ci/make-venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[workbench]'
	touch $@

$(READY_TEST): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
