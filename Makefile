# The two commands of the README are `make demo` and `make test`; `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,\
    $(shell $(name) -c 'import sys; sys.version_info < (3, 11) and sys.exit(1); print("$(name)")' 2>/dev/null)) python3)
EXTRAS ?= dev
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(EXTRAS)

.PHONY: help setup demo test check lint fix docs bench serve migrate image lock clean distclean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv and install everything; instant when nothing changed

$(STAMP): pyproject.toml constraints.txt
	@PYTHON=$(PYTHON) VENV=$(VENV) deploy/venv.sh
	@echo 'installing into $(VENV): about 1.5 GB and some minutes the first time'
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]' \
	    | { grep -v '^Requirement already satisfied' || true; }
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: setup ## Train a small network, compress it through the service, print the report
	$(BIN)/python -m demo

test: lint ## Every check and every test, with real servers
	@command -v curl >/dev/null || $(MAKE) curl
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST)

check: lint ## What needs no server: format, lint, types, layers, docs
	$(BIN)/python -m pytest -q tests/test_docs.py tests/test_layers.py

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

.PHONY: curl
curl: # the commands in docs/api.md are tests too
	@[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo 'first: install curl' >&2; exit 1; }
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq curl

fix: setup ## Format the code and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup ## Write the generated parts of docs/ anew
	$(BIN)/python docs/generate.py

bench: ## Run every benchmark beside its peers; tables here, JSON in bench-output/
	@$(MAKE) setup EXTRAS=bench
	$(BIN)/python -m benchmarks

.PHONY: bench-coverage
bench-coverage: setup ## Prune every family of architectures beside the peer (hours); writes docs/coverage.md
	@PYTHON=$(PYTHON) VENV=$(VENV)-coverage deploy/venv.sh
	$(VENV)-coverage/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/coverage/requirements.txt
	$(BIN)/python -m benchmarks.coverage --peer-python $(VENV)-coverage/bin/python

serve: setup ## Start the embedded service on this machine
	$(BIN)/modelpress serve

migrate: setup ## Bring the database of MODELPRESS_DATABASE_URL to the newest schema
	$(BIN)/python -m app.migrate

image: ## Build both container images
	docker build --target api --tag modelpress-api .
	docker build --target worker --tag modelpress-worker .

lock: ## Resolve constraints.txt anew from pyproject.toml
	@PYTHON=$(PYTHON) VENV=$(VENV)-lock deploy/venv.sh
	$(VENV)-lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)-lock/bin/uv pip compile pyproject.toml --extra bench --universal \
	    --python-version 3.11 --no-header --no-annotate --output-file constraints.txt
	rm -rf $(VENV)-lock

clean: ## Remove what demo, tests and benchmarks left
	rm -rf demo-output bench-output dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -type d -prune -exec rm -rf {} +

distclean: clean ## Remove .venv too
	rm -rf $(VENV) $(VENV)-lock $(VENV)-coverage
