# Two commands: `make demo` and `make test`. Each makes .venv from hash-pinned lock files, then runs.
PYTHON ?= python3.11
ifeq ($(shell command -v $(PYTHON) 2>/dev/null),)
PYTHON := python3
endif
UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
TORCH_BACKEND ?=
UV_FLAGS := $(if $(TORCH_BACKEND),--torch-backend=$(TORCH_BACKEND),--require-hashes)

.PHONY: install demo test docs chaos check lint types audit locks clean

install: $(VENV)/.dev

demo: $(VENV)/.dev
	$(BIN)/clickwake demo $(if $(KEEP),--keep) $(if $(DATASET),--dataset $(DATASET) --data $(DATA))

# Most tests wait for brokers, engines and processes, so WORKERS of them run at once, those of a file one by one in the same
# worker: they share what is started for the file. In the order of the folders, the long ones first, so that all workers end
# at about the same time. Then, whatever came of these, those that measure time, alone. How many workers `auto` is:
# tests/conftest.py. What was skipped for want of something, a browser or Prometheus, is listed at the end: tests/support/needs.py.
WORKERS ?= auto
AT_ONCE = -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: check
	failed=0; \
	$(BIN)/pytest $(AT_ONCE) --durations 25 -m "not alone" || failed=1; \
	$(BIN)/pytest --durations 10 -m alone tests || failed=1; \
	exit $$failed

# the site, from docs/ and the code, into build/site; a broken link, picture or table of contents fails
docs: $(VENV)/.dev
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --nitpicky --quiet docs build/site

# Every crash point, 200 kills of each worker, 20 joins and leaves, Kafka away for a minute, ClickHouse ill for 30; the two files that
# take longest first, and in the end, alone, what has to be done within five minutes. `make test` has a short form.
JOINS = tests/chaos/test_moments.py::test_workers_join_and_leave
CHAOS = CLICKWAKE_CHAOS=full CLICKWAKE_TEST_OUTAGE_S=60 $(BIN)/pytest -rP --durations 0

chaos: $(VENV)/.dev
	failed=0; \
	$(CHAOS) $(AT_ONCE) --deselect $(JOINS) tests/chaos/test_moments.py tests/faults/test_sick_clickhouse.py \
		tests/chaos/test_crash_points.py tests/chaos/test_fuzz_processes.py tests/chaos/test_fuzz.py \
		tests/faults/test_outages.py || failed=1; \
	$(CHAOS) $(JOINS) tests/chaos/test_benches.py || failed=1; \
	exit $$failed

check: lint types

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/.dev
	$(BIN)/mypy

# known vulnerabilities of what is installed, from PyPI's advisory database; --strict: a package nobody could look up fails
audit: $(VENV)/.dev
	$(BIN)/uv tool run pip-audit==2.9.0 --strict --disable-pip --require-hashes -r requirements-dev.lock

# uv is fetched by pip from the index the machine is set up for; everything else by uv, each file checked by hash.
$(VENV)/.dev: requirements-dev.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --python $(BIN)/python $(UV_FLAGS) -r requirements-dev.lock
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps -e .
	touch $@

COMPILE = $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-header --no-annotate --quiet
# the images run against servers: the embedded ones are 0.9 GB that only `clickwake up` needs
RUNTIME = --extra dashboard --extra privacy --extra telemetry --extra s3

locks:
	$(COMPILE) $(RUNTIME) -o requirements.lock > /dev/null
	$(COMPILE) $(RUNTIME) --extra train -o requirements-train.lock > /dev/null
	$(COMPILE) $(RUNTIME) --extra local --extra train --extra docs --extra notebooks --extra dev -o requirements-dev.lock > /dev/null

clean:
	-$(BIN)/clickwake down
	rm -rf .clickwake
