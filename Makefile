# Two commands do everything: `make demo` and `make test`. Both make the virtual environment first (once).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_ARGS ?=
TEST_ARGS ?=
# Tests run side by side, a file in one of so many processes, each with one thread.
TEST_PROCESSES ?= 2
PYTEST := OMP_NUM_THREADS=1 GOMP_SPINCOUNT=1000 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile

.PHONY: help install demo test test-slow check clean

help:
	@echo "make demo       corpus -> neighbor database -> GPT and RETRO -> runs/demo/report.html (about 15 minutes, 2 cores)"
	@echo "make test       ruff, mypy and the tests (about 10 minutes, 2 cores)"
	@echo "make test-slow  the tests marked slow"
	@echo "make check      ruff and mypy only"
	@echo "make clean      remove the virtual environment; data/ and runs/ stay"

# Installed again only when what is installed changes.
$(STAMP): setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: Python 3.11 or newer is needed, found " + sys.version.split()[0] + "; run make PYTHON=/path/to/python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once; a few minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $(STAMP)

install: $(STAMP)

demo: $(STAMP)
	@$(BIN)/retro demo $(DEMO_ARGS)

check: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test: check
	@$(PYTEST) $(TEST_ARGS)

test-slow: $(STAMP)
	@$(PYTEST) -m slow $(TEST_ARGS)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
