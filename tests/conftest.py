"""Environment, scheduling and garbage collection of the test run. The other fixtures are in tests/sample.py."""

import atexit
import gc
import importlib
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# Before anything imports a backend or Great Expectations.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
# Tests must not use folders, keys or a server of the developer.
for name in ("DATA_DIR", "DATASETS_DIR", "ARTIFACTS_DIR", "SIGNING_KEY", "VERIFY_KEY", "REMOTE", "DASK_ADDRESS"):
    os.environ.pop(f"FASHION_ANN_{name}", None)
for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
    os.environ.pop(name, None)

import pytest

from tasks.checks.expectations import IMPORTER

TASKS = Path(__file__).parent / "tasks"

# At exit the interpreter would collect garbage among all imported modules: with TensorFlow that takes a second.
atexit.register(gc.freeze)


def pytest_configure(config: pytest.Config) -> None:
    # The main process of pytest-xdist runs no tests, and its workers start only after it has imported its plugins.
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.register(importlib.import_module("tests.sample"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the tests for the workers of pytest-xdist, and order them so that no worker waits at the end.

    - A file stays with one worker, for its fixtures.
    - tests/flows/ forms two groups, because each worker that runs one starts a Prefect server.
    - Task tests that use the backend form one group: its import takes as long as several of their trainings.
    - Task tests start last, in two halves. The first half builds the sample on one worker, and runs the backend tests
      without the sample on another. Within a half, files with many tests start first.
    """

    def task_files(fixture: str) -> set[Path]:
        return {item.path for item in items if item.path.is_relative_to(TASKS) and fixture in item.fixturenames}

    backend, sample = task_files("backend"), task_files("sample_data")
    tests_in = Counter(item.path for item in items)

    def position(item: pytest.Item) -> tuple[int, int]:
        if not item.path.is_relative_to(TASKS):
            return 0, 0
        first_half = (item.path in sample) != (item.path in backend)
        return 1 if first_half else 2, -tests_in[item.path]

    for item in items:
        group = "backend" if item.path in backend else str(item.path)
        if item.path.parent.name == "flows" and item.path.name != "test_command.py":
            group = "flows"
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=position)


def pytest_collection_finish() -> None:
    """Exclude all imported objects from garbage collection, which would visit them again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def restored_process() -> Iterator[None]:
    """Restore variables and working directory: a command that runs in this process changes them."""
    variables, folder = dict(os.environ), Path.cwd()
    yield
    # pytest iterates over modules between two tests, which fails while a thread imports some.
    for thread in threading.enumerate():
        if thread.name == IMPORTER:
            thread.join()
    os.chdir(folder)
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)
