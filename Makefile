# Hone. `make run` starts everything on a fresh machine; `make help` lists the rest.
.DEFAULT_GOAL := help
SHELL := /bin/bash
# The first interpreter that runs and is 3.12 or 3.11; a version manager's shim may exist and not run.
PYTHON := $(shell for p in python3.12 python3.11 python3 python; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && { command -v "$$p"; break; }; done)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help install lock data logs run test test-long check bench faults soak clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

install: $(VENV)/.installed ## create .venv with the locked dependencies and `hone` in it

$(VENV)/.installed: requirements-dev.lock pyproject.toml setup.py $(wildcard */native/*)
	@test -n "$(PYTHON)" || { echo "Hone needs Python 3.12 or 3.11 on PATH (vowpal-wabbit-next has wheels for no other); found none."; exit 1; }
	@command -v c++ >/dev/null || { echo "Hone needs a C++ compiler (hnswlib and Hone's own kernels are compiled on this machine), for example g++."; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

LOCK := $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links pyproject.toml

lock: install ## resolve the dependencies again; what runs is a part of what is tested
	$(LOCK) --extra dev -o requirements-dev.lock
	$(LOCK) --constraint requirements-dev.lock -o requirements.lock

data: install ## fetch the demo data, train embeddings, build the index
	$(BIN)/hone data fetch
	$(BIN)/hone data prepare

run: data ## start the whole stack on 127.0.0.1:8080 (HONE_PORT)
	$(BIN)/hone items import
	$(BIN)/hone users import
	$(BIN)/hone serve

logs: install ## fetch the public logs that estimators are checked against
	$(BIN)/hone evaluate --dataset open-bandit --campaign men >/dev/null

test: data logs ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-long: data logs ## run the tests that take minutes each, but those of `make faults`
	$(BIN)/python -m pytest -m long --timeout 3600 --ignore tests/faults

faults: data ## simulate 10,000 schedules of the loop; kill, stop and fail every process at every named point and at random
	nice -n 10 $(BIN)/python -m tests.simulation.runner --seeds 10000
	$(BIN)/python -m pytest tests/faults -m "not soak" --timeout 900

soak: data ## run a stack under constant load for SOAK_S seconds (1800), save what grew
	$(BIN)/python -m pytest tests/faults/test_soak.py -m soak -s

check: install ## lint, types, layering
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: data ## run the benchmarks, save JSON under tests/benchmarks/results
	$(BIN)/hone bench service

clean: ## remove what was built; keeps the download cache
	rm -rf $(VENV) var build *.egg-info
