# The menu: run, test, check, bench, lock, clean. Every target works from a fresh clone.
.PHONY: run test check bench lock clean peers
SHELL := /bin/bash

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo $$p; exit; }; done; \
	echo no-python-3.11-to-3.13-found)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
ONCE ?=

run: $(VENV)/.runs ## set everything up, then show a study going in and a report coming back
	@$(BIN)/medimgd demo $(if $(ONCE),--once)

test: $(VENV)/.tests peers check ## everything that must hold
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

check: $(VENV)/.tests ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.tests peers ## measure, and print a table
	$(BIN)/python -m tests.benchmarks $(BENCH)

peers: $(VENV)-mlserver/.installed ## DCMTK, Orthanc, Chromium and MLServer, which the tests talk to
	@tests/install-peers

lock: $(VENV)/.tests ## pin every dependency anew, with hashes and without index addresses
	$(PIP) install -q uv
	$(BIN)/uv pip compile pyproject.toml --extra build --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header -q --upgrade -o requirements/run.txt
	$(BIN)/uv pip compile pyproject.toml --extra build --extra test --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header -q -c requirements/run.txt -o requirements/test.txt
	$(BIN)/uv pip compile requirements/mlserver.in --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header -q --upgrade -o requirements/mlserver.txt

clean: ## remove the environment and the demonstration's state
	rm -rf $(VENV) $(VENV)-mlserver run .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(VENV)/bin/python:
	@echo "medimgd: creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.runs: requirements/run.txt pyproject.toml | $(VENV)/bin/python
	@echo "medimgd: installing the pinned libraries (a minute or two; TensorFlow is large)"
	@$(PIP) install -q --require-hashes -r requirements/run.txt
	@$(PIP) install -q --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.tests: requirements/test.txt pyproject.toml | $(VENV)/bin/python
	@echo "medimgd: installing the pinned libraries and test tools (a minute or two)"
	@$(PIP) install -q --require-hashes -r requirements/test.txt
	@$(PIP) install -q --no-deps --no-build-isolation -e .
	@touch $@ $(VENV)/.runs

# In an environment of its own: its libraries and ours need other versions of each other. It has no
# release for Python 3.13, and the tests say so there.
$(VENV)-mlserver/.installed: requirements/mlserver.txt
	@echo "medimgd: installing MLServer for the tests"
	@$(PYTHON) -m venv $(VENV)-mlserver
	@if $(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 13))'; then \
		$(VENV)-mlserver/bin/python -m pip --disable-pip-version-check install -q --require-hashes \
			-r requirements/mlserver.txt; fi
	@touch $@
