# One command a chore. `make` alone lists them.

VENV := .venv
BIN := $(VENV)/bin
CANDIDATES := $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)
USABLE := import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))
INSTALL = $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
# What pip installs has bytecode; what it links to gets it when it is first run, if that may write.
COMPILE = $(BIN)/python -m compileall -qq runtime worker sharedcache
# Those with the longest files first: what comes last is short, so that no processor waits for it.
SUITES := tests/interop tests/acceptance tests/integration tests/unit

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help quickstart test suites lint conformance interop bench bench-cache bench-runs bench-streams chaos chaos-runs restarts soak pins clean

# A copied folder brings scripts that would run the original's code.
ifneq ($(shell cat $(VENV)/.made 2>/dev/null),$(CURDIR))
$(shell rm -f $(VENV)/.made $(VENV)/.runtime $(VENV)/.dev)
endif

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

quickstart: $(VENV)/.runtime ## stream a book from 4 workers and show what happened
	@$(BIN)/td-runtime run -c configs/quickstart/td-runtime.toml stream-book

test: lint suites ## every check and every test

# In a process of their own: xdist's has a second thread, and these fork children by the dozen. A lock
# that thread holds at a fork stays locked in the child. Campaigns also want the machine to themselves.
FORKING := $(addprefix tests/integration/test_,chaos_runs.py chaos_smoke.py mass_failure.py outage.py)

# More at once than there are processors: many a test waits for a time-out or for an outage's end.
suites: $(VENV)/.node $(VENV)/.s2
	@$(BIN)/python -m pytest -q -n 4 --dist loadfile --no-loadscope-reorder $(SUITES) $(addprefix --ignore=,$(FORKING))
	@$(BIN)/python -m pytest -q $(FORKING)

lint: $(VENV)/.dev ## ruff, mypy, basedpyright, import-linter
	@$(BIN)/ruff check --quiet --output-format=concise
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy
	@$(BIN)/basedpyright
	@$(BIN)/lint-imports --no-cache --no-logo

conformance: $(VENV)/.node $(VENV)/.s2 ## run what holds the official SDK's own cases, and list them
	@$(BIN)/python -m tests.conformance

interop: $(VENV)/.node $(VENV)/.s2 ## only the tests that drive the official clients
	@$(BIN)/python -m pytest -q tests/interop

bench: $(VENV)/.dev ## what the runtime costs, beside what it is compared with
	@for file in $(filter-out benchmarks/cache_% benchmarks/streams_% benchmarks/runs_%,$(wildcard benchmarks/[a-z]*.py)) benchmarks/cache_hit.py; do \
	   $(BIN)/python $$file || exit; done

bench-cache: $(VENV)/.peers ## the credential cache beside other caches, 5 to 10 minutes
	@for file in benchmarks/cache_*.py; do $(BIN)/python $$file || exit; done

bench-streams: $(VENV)/.node $(VENV)/.s2 ## writing to streams beside the official clients, about 5 minutes
	@for file in benchmarks/streams_*.py; do $(BIN)/python $$file || exit; done

bench-runs: $(VENV)/.peers-runs ## runs beside other task queues, about 15 minutes
	@started=$$(date +%s); \
	   for file in benchmarks/runs_*.py; do $(BIN)/python $$file || exit; done; \
	   echo; echo "All of it took $$(( $$(date +%s) - started )) s."

chaos: $(VENV)/.dev ## attack the credential cache for minutes (SEED=7, SEED=random)
	@$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED))

chaos-runs: $(VENV)/.dev ## kill workers and supervisors under 20,000 runs, 10 minutes (SEED=)
	@$(BIN)/python -m tests.chaos_runs $(if $(SEED),--seed $(SEED))

restarts: $(VENV)/.dev ## have 10,000 workers die, and look what is left of them (COUNT=)
	@$(BIN)/python -m tests.chaos.restarts $(if $(COUNT),--count $(COUNT))

soak: $(VENV)/.dev ## 100,000 slots in turn for 10 minutes (MINUTES=, SECONDS=)
	@$(BIN)/python -m tests.chaos.soak $(if $(SECONDS),--seconds $(SECONDS),$(if $(MINUTES),--minutes $(MINUTES)))

pins: $(VENV)/.made ## write constraints.txt anew from the newest releases
	@$(BIN)/python -m venv --clear $(VENV)/newest
	@$(VENV)/newest/bin/python -m pip install -qq --upgrade pip
	@$(VENV)/newest/bin/python -m pip install -qq --editable . --group dev
	@{ sed -n '/^#/p' constraints.txt; $(VENV)/newest/bin/python -m pip freeze --all --exclude-editable \
	   --exclude setuptools | sort -f; } > $(VENV)/pins
	@mv $(VENV)/pins constraints.txt && rm -rf $(VENV)/newest

clean: ## remove the environment and everything that was built
	@rm -rf $(VENV) tests/interop/node_modules tests/interop/s2_node/node_modules dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@for python in $(CANDIDATES); do \
	   $$python -c '$(USABLE)' 2>/dev/null || continue; \
	   echo "Making $(VENV) with $$($$python --version), about half a minute"; \
	   $$python -m venv --clear $(VENV) && echo '$(CURDIR)' > $@; exit; \
	 done; \
	 echo "No Python >= 3.11 with venv among: $(CANDIDATES). Name one: make PYTHON=/path/to/python" >&2; exit 1

$(VENV)/.runtime: $(VENV)/.made pyproject.toml constraints.txt
	@$(INSTALL) --upgrade pip
	@$(INSTALL) --build-constraint constraints.txt --editable .
	@$(COMPILE)
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml constraints.txt
	@$(INSTALL) --upgrade pip
	@$(INSTALL) --build-constraint constraints.txt --editable . --group dev
	@$(COMPILE)
	@touch $@ $(VENV)/.runtime

# The caches that ours is measured beside; nothing of ours may ever import them.
$(VENV)/.peers: $(VENV)/.dev benchmarks/peers/requirements.txt
	@$(BIN)/python -m venv --clear $(VENV)/peers
	@$(VENV)/peers/bin/python -m pip install -qq --disable-pip-version-check \
	   --requirement benchmarks/peers/requirements.txt
	@touch $@

$(VENV)/.peers-runs: $(VENV)/.dev benchmarks/peers/requirements-runs.txt
	@$(BIN)/python -m venv --clear $(VENV)/peers-runs
	@$(VENV)/peers-runs/bin/python -m pip install -qq --disable-pip-version-check \
	   --requirement benchmarks/peers/requirements-runs.txt
	@touch $@

# The stream store's Python client has dependencies of its own, so it lives apart too.
$(VENV)/.s2: $(VENV)/.dev tests/interop/s2_python/requirements.txt
	@$(BIN)/python -m tests.interop.s2_python.environment
	@touch $@

$(VENV)/.node: $(VENV)/.dev tests/interop/package-lock.json tests/interop/s2_node/package-lock.json
	@$(BIN)/python -m tests.interop.node
	@touch $@
