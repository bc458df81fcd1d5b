# Every target runs from a fresh checkout: `.venv` is made and kept in step with uv.lock by the one rule at the end.
# Settings can be given to any target: make up SCALE="gateway=2 agents=3" RATE_LIMIT_MAX_REQUESTS=100000
MAKEFLAGS += --no-print-directory --no-builtin-rules
SHELL := /bin/sh
PYTHON := .venv/bin/python
STACK := $(PYTHON) -m ops.stack
ENVIRONMENT_IS_CURRENT := .venv/.current
UV = $(shell command -v uv || echo .local/tools/bin/uv)
# Kills, cuts and floods take their time: they are asked for by name.
T = tests --ignore=tests/faults
WORKERS = 2
MINUTES = 60
SEED = 0
BENCHES = gateway accept events ingest holds webhooks runs streams growth

.DEFAULT_GOAL := help
.PHONY: help up down status logs env migrate release rollback doctor demo test smoke faults soak contracts check lint format types audit sbom clean bench $(BENCHES:%=bench-%)

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' Makefile | expand -t 18

up: $(ENVIRONMENT_IS_CURRENT) ## Start everything and wait until it is healthy; again: apply what changed
	@$(STACK) up

down: $(ENVIRONMENT_IS_CURRENT) ## Stop everything, keep the data
	@$(STACK) down

status: $(ENVIRONMENT_IS_CURRENT) ## Show each process: state, pid, port, readiness
	@$(STACK) status

logs: $(ENVIRONMENT_IS_CURRENT) ## Follow the logs of everything, or of one: make logs S=agents
	@$(STACK) logs

env: $(ENVIRONMENT_IS_CURRENT) ## Print the running stack's addresses and keys: eval "$(make -s env)"
	@$(STACK) env

migrate: $(ENVIRONMENT_IS_CURRENT) ## Apply pending migrations to the running stack's database
	@$(STACK) migrate

release: $(ENVIRONMENT_IS_CURRENT) ## On Compose: move to the images of a tag without losing a request: make release TAG=2026-11-27
	@$(STACK) release

rollback: $(ENVIRONMENT_IS_CURRENT) ## On Compose: back to the tag before
	@$(STACK) rollback

doctor: $(ENVIRONMENT_IS_CURRENT) ## Look at everything; name what is ill and the runbook's section. More: scripts/venture --help
	@scripts/venture doctor

demo: $(ENVIRONMENT_IS_CURRENT) ## Walk through the product on the running stack
	@$(PYTHON) -m ops.demo

# A file of tests stays with one worker: what its fixtures start is started once. In the order they lie, the long files
# come before the many small ones of tests/unit, so that both workers end together.
test: $(ENVIRONMENT_IS_CURRENT) ## Run the tests, with servers of their own; one part: make test T=tests/unit WORKERS=0
	@$(PYTHON) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(T)

smoke: $(ENVIRONMENT_IS_CURRENT) ## The fault tests that are short enough for every commit
	@$(PYTHON) -m pytest tests/faults -m smoke

# The files with the most scenarios begin, so that both workers end together.
faults: $(ENVIRONMENT_IS_CURRENT) ## All fault tests, with what they measured: kills, freezes, cuts, floods (half an hour)
	@$(PYTHON) -m pytest -n $(WORKERS) --dist loadfile -rA --show-capture=stdout tests/faults

bench: $(BENCHES:%=bench-%) ## Measure beside the peers, half an hour; one: make bench-gateway (accept, events, ingest, holds...)

# One at a time, on a machine that does nothing else. Peers come into .local/bench on first use.
$(BENCHES:%=bench-%): bench-%: $(ENVIRONMENT_IS_CURRENT)
	@$(PYTHON) -m bench $*

soak: $(ENVIRONMENT_IS_CURRENT) ## Light load for an hour and a fault every 20 s: make soak MINUTES=10 SEED=7
	@$(PYTHON) -m tests.faults.soak --minutes $(MINUTES) --seed $(SEED)

contracts: $(ENVIRONMENT_IS_CURRENT) ## Write the contracts of events and API anew from the code; review what changed
	@$(PYTHON) -m tests.contracts.snapshots --write
	@$(PYTHON) -m tests.contracts.documents --write

check: lint types test smoke ## Everything that CI runs

lint: $(ENVIRONMENT_IS_CURRENT) ## Check style, layering, house rules and the lock file
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/lint-imports
	@$(PYTHON) -m ops.house_rules
	@$(UV) lock --check

format: $(ENVIRONMENT_IS_CURRENT) ## Format the code and mend what can be mended by itself
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

types: $(ENVIRONMENT_IS_CURRENT) ## Check the types
	@.venv/bin/basedpyright

audit: $(ENVIRONMENT_IS_CURRENT) ## Look up known vulnerabilities and secrets in the history; needs PyPI
	@sh scripts/audit.sh

sbom: $(ENVIRONMENT_IS_CURRENT) ## Write the bill of materials of the images (CycloneDX)
	@sh scripts/sbom.sh

clean: $(ENVIRONMENT_IS_CURRENT) ## Stop everything and remove its data; .env and .venv stay
	@$(STACK) wipe

$(ENVIRONMENT_IS_CURRENT): uv.lock pyproject.toml
	@sh scripts/bootstrap.sh
