# Two commands do everything on a fresh machine with Python 3.10-3.12: `make demo` and `make test`.

# The first Python of these that really runs (a version manager's shim may point at a Python that is not installed).
FITS := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.10 python3 python,$(shell $(p) -c '$(FITS)' >/dev/null 2>&1 && echo $(p))))
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help setup demo test quick coverage lint types docs serve-docs wheel benchmarks flink clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(VENV)/.done  ## create the virtual environment and install everything, once

# uv unpacks and compiles on all cores; where it cannot install (it does not read pip's configuration), pip does.
INSTALL := --constraint constraints.txt --editable '.[dev]'
# Python compiles what it imports, once; where it must not write that (PYTHONDONTWRITEBYTECODE), everything is compiled now.
COMPILE := $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode)
$(VENV)/.done: setup.py constraints.txt CHANGELOG.md
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10, 3.11 or 3.12 found; install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c '$(FITS)' 2>/dev/null || { echo "error: $(PYTHON) is not Python 3.10, 3.11 or 3.12; name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@if $(BIN)/python -m pip --version >/dev/null 2>&1; then echo "bringing $(VENV) up to date"; \
	else echo "creating $(VENV) with $(PYTHON): about 0.8 GB to download, 3 GB on disk, some minutes"; $(PYTHON) -m venv $(VENV); fi
	@PIP_CONSTRAINT= $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python $(COMPILE) $(INSTALL) 2>$(VENV)/uv.log \
	|| { echo "uv could not install (see $(VENV)/uv.log); trying pip"; \
	PIP_CONSTRAINT= $(BIN)/python -m pip install --quiet --disable-pip-version-check $(INSTALL); }
	@touch $@
	@echo "done; put the clsd command on your path: . $(BIN)/activate"

demo: setup  ## the whole job on MovieLens-100K: train, report, serve one prediction
	@$(BIN)/clsd run --config configs/movielens-100k.yaml

PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test: setup  ## all tests, one process per core
	@$(PYTEST) --durations 15

quick: setup  ## the unit tests, for the inner loop: under two minutes on 2 cores
	@$(PYTEST) -m unit

COVERAGE_MIN ?= 90
coverage: setup  ## all tests with line coverage; fails below 90 %
	@$(PYTEST) --durations 30 --cov --cov-report=term:skip-covered --cov-fail-under=$(COVERAGE_MIN)

lint: setup  ## ruff (rules, format) and import-linter (what may import what)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache

types: setup  ## mypy, strict
	@$(BIN)/mypy

docs: setup  ## build the documentation into build/site, strictly; docs/configuration.md comes from the settings classes
	@$(BIN)/python docs/generate.py
	@$(BIN)/python docs/img/draw.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

serve-docs: docs  ## build the documentation and serve it on http://localhost:8000
	@$(BIN)/mkdocs serve

wheel: setup  ## build the wheel, and try it in a fresh environment away from the checkout
	@BIN=$(abspath $(BIN)) bash tests/try_wheel.sh

benchmarks: setup  ## every benchmark, quickly; each measures both sides in one run
	@for b in $$(grep -l '__main__' benchmarks/*.py); do echo "== $$b"; $(BIN)/python $$b --quick || exit 1; done

FLINK := docker/flink/target/flink-job-server.jar

flink: $(FLINK)  ## build the job server that runs Beam on Apache Flink (needs Java and Maven)

$(FLINK): docker/flink/pom.xml
	@command -v mvn >/dev/null || { echo "error: no mvn; install Maven and Java 11 or 17" >&2; exit 2; }
	@mvn --quiet --batch-mode --file $< package
	@touch $@

clean:  ## remove the environment, caches and builds; data and results stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .coverage build dist *.egg-info docker/flink/target
