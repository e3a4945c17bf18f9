"""How the tests run, whoever runs them; what they are given is in tests/sample.py."""

import atexit
import gc
import importlib
import os
from collections import Counter

# Before anything imports a backend or Great Expectations.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
# A developer's own folders and server have no part in the tests.
for name in ("FASHION_ANN_DATA_DIR", "FASHION_ANN_ARTIFACTS_DIR", "PREFECT_API_URL"):
    os.environ.pop(name, None)

import pytest

# When the interpreter ends, after pytest's own last look for garbage, it looks through all that was ever imported: with
# TensorFlow for a second.
atexit.register(gc.freeze)


def pytest_configure(config: pytest.Config) -> None:
    # One that only hands tests out to others, pytest-xdist's first process, would import all stages for nothing, and
    # the others start only then.
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.register(importlib.import_module("tests.sample"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under pytest-xdist a file stays with one worker, for its fixtures; tests/flows/ with two, for a server each: with
    one server for all of them a core would wait for the other in the end. Files of task tests that use the backend stay
    with one, too: to import it takes as long as several of its trainings. Of those the ones with the sample come last,
    of other task tests first, so that nobody waits for it; and files with many tests before others, so that none of
    them begins when all else is done.
    """
    tasks = [item for item in items if "tasks" in item.path.parts[-3:]]
    backend, sample = (
        {item.path for item in tasks if name in item.fixturenames} for name in ("backend", "sample_data")
    )
    for item in items:
        group = "backend" if item.path in backend else f"{item.path.parent.name}/{item.path.name}"
        if item.path.parent.name == "flows" and item.path.name != "test_command.py":
            group = "flows"
        item.add_marker(pytest.mark.xdist_group(group))

    length = Counter(item.path for item in items)

    def turn(item: pytest.Item) -> tuple[int, int]:
        if "tasks" not in item.path.parts[-3:]:
            return 0, 0
        return 2 if (item.path in sample) == (item.path in backend) else 1, -length[item.path]

    # The order within a file is kept, and of those outside tests/tasks/, which take longest, that of their names.
    items.sort(key=turn)


def pytest_collection_finish() -> None:
    """What was imported stays: it need not be looked through for garbage, again and again."""
    gc.collect()
    gc.freeze()
