# Every target sets up what it needs in .venv, with plain pip and the versions of constraints.txt.
# A fresh machine needs Python 3.11 or later, git and make.

PYTHON ?= $(firstword $(wildcard $(foreach name,python3.11 python3.12 python3.13 python3.14 python3,$(shell command -v $(name) 2>/dev/null))) python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install --constraint constraints.txt
PROJECTS := $(wildcard plugins/*/pyproject.toml)
EDITABLE := $(foreach project,$(PROJECTS),--editable $(dir $(project)))
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup run test test-rest test-all check bench chaos constraints

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

setup: $(READY)  ## Install everything into .venv

run: $(READY)  ## Run Taskyard on this machine: embedded PostgreSQL and broker, API, dispatcher, worker
	@exec $(BIN)/taskyard up

# Three at a time on two cores: most tests wait for a server, a worker or the clock.
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test: $(READY)  ## Run the quick tests, on embedded servers alone: TESTS= for some, or for options of pytest
	TASKYARD_TEST_SERVERS=none $(PYTEST) -m 'not slow' $(TESTS)

test-rest: $(READY)  ## Run the tests that `make test` leaves out: the slow ones, and those on PostgreSQL and RabbitMQ where they answer
	$(PYTEST) --rest $(TESTS)

test-all: $(READY)  ## Run all tests, on embedded servers, and on PostgreSQL and RabbitMQ where they answer
	$(PYTEST) $(TESTS)

check: $(READY)  ## Check format, style, types, imports and the docs
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/docs

bench: $(READY) .venv-bench/.ready  ## Measure, beside the peers; the report is in benchmarks/results
	$(BIN)/python -m benchmarks $(BENCH)

chaos: $(READY)  ## Hurt the real roles under load and count everything: TASKS=, SEED=, MUTATE=, PAIR=servers|embedded
	@$(BIN)/python -m tests.system.chaos $(if $(TASKS),--tasks $(TASKS)) $(if $(SEED),--seed $(SEED)) $(if $(MUTATE),--mutate $(MUTATE)) $(if $(PAIR),--pair $(PAIR))

# The peers have an environment of their own: what they need must not decide our versions.
.venv-bench/.ready: benchmarks/requirements-peers.txt
	@test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python -m pip --quiet --disable-pip-version-check install --requirement $<
	@touch $@

# Generators of clients need other versions than we do, Java and Node.js: PyPI has all of them. A test makes it, when it is run.
.venv-client/.ready: tests/api/requirements-client.txt tests/api/package.json
	@test -x .venv-client/bin/python || $(PYTHON) -m venv .venv-client
	@.venv-client/bin/python -m pip --quiet --disable-pip-version-check install --requirement $<
	@mkdir -p .venv-client/node && cp tests/api/package.json .venv-client/node
	@PATH="$(CURDIR)/.venv-client/bin:$$PATH" npm install --prefix .venv-client/node --silent --no-package-lock --no-audit --no-fund --ignore-scripts
	@touch $@

constraints: $(READY)  ## Pin the versions that .venv has now in constraints.txt
	$(BIN)/python -m pip --disable-pip-version-check list --format=freeze --exclude-editable > constraints.txt

# The examples are installed by the tests, as a stranger would. The editables are built with the tools in .venv, so that these are pinned too.
$(READY): constraints.txt pyproject.toml $(PROJECTS)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Taskyard needs Python 3.11 or later. Name one: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "Python's venv module is missing: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing into .venv; the first time takes a minute or two"
	@$(PIP) pip hatchling editables
	@$(PIP) --no-build-isolation --editable '.[standard]' $(EDITABLE) --group dev
	@touch $@
