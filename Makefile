# Every target shares one virtual environment, .venv, built once and again when its inputs change. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SEEDS ?= 1 2 3 4 5 6 7 8 9 10
NIGHT ?= 60m
JOBS ?= 2

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install --progress-bar off
# pip's own lines, without the ones that say nothing is left to do
BRIEF := sed -u -n -E '/^(Collecting|Building|Installing|Successfully)/{s/ \(from .*//;s/^(.{100}).*/\1/;p}'

.PHONY: help setup demo test check format-check fmt lint types contracts generated proto golden chaos chaos-night sim-night bench clean

help: ## this list
	@sed -n -E 's/^([a-z-]+):.*## (.*)$$/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do printf '%-14s %s\n' "$$name" "$$what"; done

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; say make PYTHON=...")'
	@echo "setup: virtual environment in $(VENV)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "setup: $$(grep -c '==' requirements.txt) pinned packages, hashes checked"
	@$(PIP) --require-hashes -r requirements.txt | $(BRIEF)
	@echo "setup: the project itself"
	@$(PIP) --no-deps --no-build-isolation -e . | $(BRIEF)
	@touch $@

setup: $(READY) ## builds .venv from requirements.txt
	@echo "setup: ready; the command is $(BIN)/tenfold"

demo: $(READY) ## two minutes: a cluster, a load, two kills, the verdict
	@$(BIN)/python -m chaos.demo

test: $(READY) ## all tests, progress shown; under five minutes on two cores
	@$(BIN)/pytest -n 3 --dist loadgroup --durations 10

check: format-check lint types contracts generated test ## everything a change must pass

format-check: $(READY)
	@echo "check: format"
	@$(BIN)/ruff format --quiet --check . || { echo "check: run make fmt" >&2; exit 1; }

lint: $(READY) ## ruff's rules
	@echo "check: lint"
	@$(BIN)/ruff check --quiet .

types: $(READY) ## mypy, strict
	@echo "check: types"
	@$(BIN)/mypy

contracts: $(READY) ## who may import whom
	@echo "check: import contracts"
	@$(BIN)/lint-imports --no-logo

generated: $(READY)
	@echo "check: generated code"
	@$(BIN)/python -m proto.generate --check

fmt: $(READY) ## rewrites the tree in its format
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .

proto: $(READY) ## regenerates proto/gen from proto/*.proto
	@$(BIN)/python -m proto.generate

golden: $(READY) ## rewrites the Raft transcripts; commit them only once understood
	@GOLDEN=rewrite $(BIN)/pytest tests/raft -k golden

chaos: $(READY) ## one experiment: kills under load, one minute, judged
	@$(BIN)/tenfold chaos run kill

chaos-night: $(READY) ## kills and changing members, ten seeds each, and ten rolling restarts; one bad verdict fails
	@bad=0; one() { echo "chaos: $$*"; $(BIN)/tenfold chaos run "$$@" || { echo "chaos: $$* ended $$?" >&2; bad=1; }; }; \
	for seed in $(SEEDS); do \
	  one kill --nodes 5 --duration 60s --seed $$seed --out build/chaos/seed-$$seed; \
	  one members --nodes 3 --duration 60s --seed $$seed --out build/chaos/members-$$seed; \
	done; \
	one rolling --nodes 3 --rounds 10 --out build/chaos/rolling; exit $$bad

sim-night: $(READY) ## an hour of seeds in virtual time on two cores; one bad verdict fails
	@$(BIN)/tenfold sim run --for $(NIGHT) --jobs $(JOBS)

bench: $(READY) ## replication factor, callers and batches, a node that joins, the simulator; tables and an SVG in build/bench
	@$(BIN)/tenfold bench replication --out build/bench
	@$(BIN)/tenfold bench move --out build/bench
	@$(BIN)/tenfold sim bench --out build/bench

clean: ## removes what this file built (.venv, caches, build); clusters' data stays
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
