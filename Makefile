# Two commands: `make demo` and `make test`. Everything they need is set up on the way, once.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test bench docs lint format clean distclean

# Options for the command behind a target: make demo ARGS="--seconds 20"
ARGS ?=

# A domain of its own for each run, so that two of them on one machine do not hear each other.
ifndef ROS_DOMAIN_ID
export ROS_DOMAIN_ID := $(shell echo $$((RANDOM % 100 + 1)))
endif

READY := scripts/setup.sh && . scripts/env.sh

help: ## say what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo 'Options for the command behind a target: make demo ARGS="--seconds 20"'

setup: ## .venv, ROS 2, the built package; nothing where they are up to date
	@$(READY) && echo "ready: . scripts/env.sh"

demo: ## the simulated arm, the policy and the executor on real ROS 2, pruned against dense
	@$(READY) && specprune demo $(ARGS)

test: ## the tests, without the slow ones (ARGS="-m slow" runs those)
	@$(READY) && python -m pytest $(ARGS)

bench: ## how much pruning saves on this machine
	@$(READY) && specprune bench $(ARGS)

docs: ## the documents with the Python reference as a site, in out/site
	@$(READY) && NO_MKDOCS_2_WARNING=1 mkdocs build $(ARGS)

lint: ## formatting, style and the direction of imports
	@$(READY) && ruff format --check . && ruff check . && lint-imports

format: ## format the code
	@$(READY) && ruff format . && ruff check --fix .

clean: ## remove what was built and written, keep .venv
	rm -rf build install log out .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	rm -f .venv/.stamps/built
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## remove .venv as well
	rm -rf .venv
