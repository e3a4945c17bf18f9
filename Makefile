# Entry points for people and CI. `make run` and `make test` need only git, make and python3 >= 3.11 with venv.
.DEFAULT_GOAL := run
.PHONY: run up down status test test-tasks test-browser test-deployed test-remote test-hosts test-mlflow test-containers \
	iproute postgresql chromium docker fuzz check audit bench bench-scale pictures lock clean

# The interpreter of a new environment, and its folder: `make test-tasks PYTHON=python3.12 VENV=.venv/3.12`.
PYTHON ?= python3
VENV ?= .venv
# cpu or gpu: the TensorFlow that `make run` installs. An environment keeps its first one, because their files overlap.
ACCELERATOR ?= $(if $(wildcard $(VENV)/gpu.stamp),gpu,cpu)
BIN := $(VENV)/bin
# Compile at installation: every process then imports TensorFlow in a third of the time.
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode

run: $(VENV)/$(ACCELERATOR).stamp
	$(BIN)/fashion-ann train

up down status: $(VENV)/$(ACCELERATOR).stamp
	$(BIN)/fashion-ann $@

test: $(VENV)/dev.stamp
	$(BIN)/pytest

test-tasks: $(VENV)/dev.stamp
	$(BIN)/pytest tests/tasks

# Real servers, workers and kills take minutes, so `make test` leaves them out. When all tests ran and passed, this
# writes docs/faults.md. The tests mostly wait, so three run at a time on any number of cores. Files with many tests
# start first.
FAULTS_TABLE ?= docs/faults.md
test-deployed: $(VENV)/dev.stamp postgresql
	FAULTS_TABLE=$(FAULTS_TABLE) $(BIN)/pytest --numprocesses 3 --loadscope-reorder tests/deployed

# Against OpenStack Swift, a real server of object storage, and moto. Both have an environment of their own.
test-remote: $(VENV)/dev.stamp $(VENV)/storage/done.stamp
	STORAGE_BIN=$(abspath $(VENV)/storage/bin) $(BIN)/pytest --numprocesses 2 tests/remote

# The gpu pool and Dask on three hosts without a shared disk, as root. They are Linux namespaces, of which nothing
# remains. Takes minutes, because the end of a host is noticed after 100 s.
test-hosts: $(VENV)/dev.stamp $(VENV)/storage/done.stamp iproute
	STORAGE_BIN=$(abspath $(VENV)/storage/bin) $(BIN)/pytest --numprocesses 0 tests/hosts

# Installs Debian's package, as root, if the machine lacks it.
iproute:
	@command -v ip >/dev/null || \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends \
			iproute2 >/dev/null; }

# Against real MLflow servers, on sqlite and on Postgres, in an environment of their own.
test-mlflow: $(VENV)/dev.stamp $(VENV)/mlflow-server/done.stamp postgresql
	MLFLOW_BIN=$(abspath $(VENV)/mlflow-server/bin) $(BIN)/pytest --numprocesses 2 tests/mlflow_server

# Installs Debian's package, as root, if the machine has no Postgres.
postgresql:
	@ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || \
		{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends postgresql; }

# Builds the cpu image and runs compose on a Docker engine of its own, as root, on any machine with Debian's packages. No
# image registry is needed. Takes about 5 minutes, and removes the engine, its images and its firewall rules at the end.
test-containers: $(VENV)/dev.stamp docker
	$(BIN)/pytest --numprocesses 0 tests/containers

# Installs Debian's packages, as root, if the machine has no engine.
docker:
	@{ command -v dockerd && command -v mmdebstrap && command -v iptables-restore; } >/dev/null || \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends \
			docker.io mmdebstrap iptables >/dev/null; }

# Writes each input that ingest and Python's csv module read differently to tests/fuzz/found-*.
FUZZ_SECONDS ?= 50
fuzz: $(VENV)/dev.stamp
	@mkdir -p $(VENV)/fuzz
	$(BIN)/python -m tests.fuzz.fuzz_ingest -max_total_time=$(FUZZ_SECONDS) -max_len=2048 -dict=tests/fuzz/csv.dict \
		-artifact_prefix=tests/fuzz/found- $(VENV)/fuzz tests/fuzz/corpus

# The report and Prefect's UI in a real browser; one process, so that the browser starts once.
test-browser: $(VENV)/dev.stamp chromium
	$(BIN)/pytest --numprocesses 0 tests/browser

# Installs Debian's package, as root, if the machine has no browser. Set CHROMIUM to use another one.
chromium:
	@test -n "$$CHROMIUM" || command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
		command -v google-chrome >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core >/dev/null; }

check: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The licences of all locked packages, and their known vulnerabilities. The latter need a network. Not part of .ci/run,
# because the result changes when the code does not.
audit: $(VENV)/dev.stamp $(VENV)/audit/done.stamp
	$(BIN)/python -m benchmarks.licences
	$(VENV)/audit/bin/python -m benchmarks.audit

# All rows take at most 15 minutes on two quiet cores; `python -m benchmarks --only ROW` measures one.
bench: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks

# The whole pipeline on many rows, generated from the published images: up to 7,500,000, of 2.3 kB each.
ROWS ?= 70000
bench-scale: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.scale $(ROWS)

# The pictures in README.md and docs/. Trains a model to take them.
pictures: $(VENV)/dev.stamp chromium
	$(BIN)/python -m benchmarks.pictures

# Locks the newest versions within the bounds of pyproject.toml, with hashes and without registry addresses.
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command 'make lock' --upgrade
lock: $(VENV)/uv.stamp
	$(COMPILE) requirements/uv.in -o requirements/uv.lock
	$(COMPILE) pyproject.toml --extra cpu -o requirements/cpu.lock
	$(COMPILE) pyproject.toml --extra gpu -c requirements/cpu.lock -o requirements/gpu.lock
	$(COMPILE) pyproject.toml --extra cpu --extra dev --extra datasets --extra docker --extra tune --extra dask \
		--extra remote --extra mlflow --extra export -c requirements/cpu.lock -o requirements/dev.lock
	$(COMPILE) pyproject.toml --extra datasets -c requirements/dev.lock -o requirements/datasets.lock
	$(COMPILE) pyproject.toml --extra docker -c requirements/dev.lock -o requirements/docker.lock
	$(COMPILE) pyproject.toml --extra tune -c requirements/dev.lock -o requirements/tune.lock
	$(COMPILE) pyproject.toml --extra dask -c requirements/dev.lock -o requirements/dask.lock
	$(COMPILE) pyproject.toml --extra remote -c requirements/dev.lock -o requirements/remote.lock
	$(COMPILE) pyproject.toml --extra mlflow -c requirements/dev.lock -o requirements/mlflow.lock
	$(COMPILE) pyproject.toml --extra export -c requirements/dev.lock -o requirements/export.lock
	$(COMPILE) pyproject.toml --extra jax -c requirements/dev.lock -c requirements/gpu.lock -o requirements/jax.lock
	$(COMPILE) requirements/audit.in -c requirements/dev.lock -o requirements/audit.lock
	$(COMPILE) requirements/storage.in -o requirements/storage.lock
	$(COMPILE) requirements/mlflow-server.in -o requirements/mlflow-server.lock

clean:
	rm -rf $(VENV)

$(VENV)/uv.stamp: requirements/uv.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# pip-audit has an environment of its own, because it needs pip and packages that the project does not need.
$(VENV)/audit/done.stamp: requirements/audit.lock $(VENV)/uv.stamp
	$(PYTHON) -m venv $(VENV)/audit
	$(BIN)/uv pip install --quiet --python $(VENV)/audit/bin/python --require-hashes -r $<
	@touch $@

$(VENV)/storage/done.stamp: requirements/storage.lock $(VENV)/uv.stamp
	$(PYTHON) -m venv $(VENV)/storage
	$(BIN)/uv pip install --quiet --python $(VENV)/storage/bin/python --compile-bytecode --require-hashes -r $<
	@touch $@

$(VENV)/mlflow-server/done.stamp: requirements/mlflow-server.lock $(VENV)/uv.stamp
	$(PYTHON) -m venv $(VENV)/mlflow-server
	$(BIN)/uv pip install --quiet --python $(VENV)/mlflow-server/bin/python --compile-bytecode --require-hashes -r $<
	@touch $@

# Installs the project last and editable: commands run the code of the checkout.
$(VENV)/%.stamp: requirements/%.lock $(VENV)/uv.stamp pyproject.toml
	$(INSTALL) --require-hashes -r $<
	$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@
