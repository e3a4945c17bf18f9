# The one vocabulary of people and CI. `make run` and `make test` need only git, make and python3 >= 3.11 with venv.
.DEFAULT_GOAL := run
.PHONY: run up down status test test-browser test-deployed postgresql chromium fuzz check bench pictures lock clean

PYTHON ?= python3
# cpu or gpu: which TensorFlow `make run` installs. What is there stays: one would be laid over the other.
ACCELERATOR ?= $(if $(wildcard .venv/gpu.stamp),gpu,cpu)
BIN := .venv/bin
# Compiled at install: `import tensorflow` takes a third of the time, in every process that starts.
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode

run: .venv/$(ACCELERATOR).stamp
	$(BIN)/fashion-ann train

up down status: .venv/$(ACCELERATOR).stamp
	$(BIN)/fashion-ann $@

test: .venv/dev.stamp
	$(BIN)/pytest

# Real servers, workers and kills: minutes, so not among the tests of every change. Writes docs/faults.md, if all
# faults were tried and passed. Three at a time, whatever the cores: each mostly waits;
# of files those with many tests first.
FAULTS_TABLE ?= docs/faults.md
test-deployed: .venv/dev.stamp postgresql
	FAULTS_TABLE=$(FAULTS_TABLE) $(BIN)/pytest --numprocesses 3 --loadscope-reorder tests/deployed

# Debian's, installed where there is none, as root.
postgresql:
	@ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || \
		{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends postgresql; }

# Bytes that ingest and Python's csv module take for different things are written to tests/fuzz/found-*.
FUZZ_SECONDS ?= 50
fuzz: .venv/dev.stamp
	@mkdir -p .venv/fuzz
	$(BIN)/python -m tests.fuzz.fuzz_ingest -max_total_time=$(FUZZ_SECONDS) -max_len=2048 -dict=tests/fuzz/csv.dict \
		-artifact_prefix=tests/fuzz/found- .venv/fuzz tests/fuzz/corpus

# The report and Prefect's UI in a real browser, which is started once.
test-browser: .venv/dev.stamp chromium
	$(BIN)/pytest --numprocesses 0 tests/browser

# Debian's, installed where there is none. CHROMIUM names another one.
chromium:
	@test -n "$$CHROMIUM" || command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
		command -v google-chrome >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core >/dev/null; }

check: .venv/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: .venv/dev.stamp
	$(BIN)/python -m benchmarks

# The pictures of README and docs, from a run of its own.
pictures: .venv/dev.stamp chromium
	$(BIN)/python -m benchmarks.pictures

# Newest versions within the bounds of pyproject.toml, hashes and no registry addresses.
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command 'make lock' --upgrade
lock: .venv/uv.stamp
	$(COMPILE) requirements/uv.in -o requirements/uv.lock
	$(COMPILE) pyproject.toml --extra cpu -o requirements/cpu.lock
	$(COMPILE) pyproject.toml --extra gpu -c requirements/cpu.lock -o requirements/gpu.lock
	$(COMPILE) pyproject.toml --extra cpu --extra dev --extra datasets -c requirements/cpu.lock -o requirements/dev.lock

clean:
	rm -rf .venv

.venv/uv.stamp: requirements/uv.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# The project itself last: an editable install, so that the checkout is what runs.
.venv/%.stamp: requirements/%.lock .venv/uv.stamp pyproject.toml
	$(INSTALL) --require-hashes -r $<
	$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@
