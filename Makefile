# Two commands do everything on a fresh machine with Python 3.10-3.12: `make demo` and `make test`.

# The first of these that really runs (a version manager's shim may stand for a Python that is not there).
FITS := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.10 python3 python,$(shell $(p) -c '$(FITS)' >/dev/null 2>&1 && echo $(p))))
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help setup demo test lint types docs benchmarks flink clean
.DEFAULT_GOAL := help

help:  ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(VENV)/.done  ## make the virtual environment and install everything, once

$(VENV)/.done: setup.py constraints.txt CHANGELOG.md
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10, 3.11 or 3.12 found; install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c '$(FITS)' 2>/dev/null || { echo "error: $(PYTHON) is not Python 3.10, 3.11 or 3.12; name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@if $(BIN)/python -m pip --version >/dev/null 2>&1; then echo "bringing $(VENV) up to date"; \
	else echo "making $(VENV) with $(PYTHON): about 0.8 GB to download, 3 GB on disk, some minutes"; $(PYTHON) -m venv $(VENV); fi
	@PIP_CONSTRAINT= $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup  ## the whole job on MovieLens-100K: train, report, serve one prediction
	@$(BIN)/clsd run --config configs/movielens-100k.yaml

test: setup  ## the test suite, a process a core
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

lint: setup  ## ruff, rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup  ## mypy, strict
	@$(BIN)/mypy

docs: setup  ## write docs/configuration.md from the settings classes
	@$(BIN)/python docs/generate.py

benchmarks: setup  ## every benchmark, quickly; each measures both sides in one run
	@for b in $$(grep -l '__main__' benchmarks/*.py); do echo "== $$b"; $(BIN)/python $$b --quick || exit 1; done

FLINK := docker/flink/target/flink-job-server.jar

flink: $(FLINK)  ## build the job server by which Beam runs on Apache Flink (needs Java and Maven)

$(FLINK): docker/flink/pom.xml
	@command -v mvn >/dev/null || { echo "error: no mvn; install Maven and a Java of 11 or 17" >&2; exit 2; }
	@mvn --quiet --batch-mode --file $< package
	@touch $@

clean:  ## remove the environment and the caches; data and results stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info docker/flink/target
