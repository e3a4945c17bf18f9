"""Many runs on Postgres, in sequence and at once: each ends in the right state, and the server logs no error."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.deployed.conftest import Deployed, deployed_at
from tests.deployed.postgres import Postgres

ON_DEMAND = "train-fashion-mnist/on-demand"
IN_SEQUENCE, AT_ONCE = 20, 5
# A failed request also appears as a traceback of uvicorn.
_ERROR = re.compile(r"\b(ERROR|CRITICAL|Traceback)\b|Exception")


@pytest.fixture(scope="module")
def on_postgres(
    postgres: Postgres, tmp_path_factory: pytest.TempPathFactory, webhook: tuple[str, Any]
) -> Iterator[Deployed]:
    address = postgres.new_database("many")
    with deployed_at(tmp_path_factory.mktemp("many"), webhook[0], address) as site, site.worker("gpu", "gpu-worker"):
        yield site


def _parameters(seed: int) -> dict[str, Any]:
    return {
        # A separate run for the training doubles the cost, so only every fifth has one.
        "train_on": "gpu" if seed % 5 == 0 else "here",
        "training": {"epochs": 1, "validation_size": 100, "seed": seed},
        "promotion": {"minimum_accuracy": 0, "minimum_recall": 0},
    }


def test_many_runs_end_in_the_right_state(on_postgres: Deployed) -> None:
    # Each seed twice: the first run creates a version, the second finds it.
    in_sequence = [on_postgres.run(ON_DEMAND, **_parameters(number // 2)) for number in range(IN_SEQUENCE)]
    assert [run.state_name for run in in_sequence] == ["Completed", "Nothing new"] * (IN_SEQUENCE // 2)
    started = [on_postgres.start(ON_DEMAND, **_parameters(IN_SEQUENCE + number)) for number in range(AT_ONCE)]
    at_once = [on_postgres.end_of(run) for run in started]
    assert [run.state_name for run in at_once] == ["Completed"] * AT_ONCE, [run.state for run in at_once]
    log = on_postgres.server_log.read_text().splitlines()
    assert [line for line in log if _ERROR.search(line)] == []

    creating = [*in_sequence[::2], *at_once]
    for run in creating:
        (manifest,) = on_postgres.versions_of(run)
        (child,) = on_postgres.children(run)
        assert child.state_name == "Completed"
        assert manifest["trained_by"]["flow_run_id"] == str(child.id)
    paths = on_postgres.artifacts.glob("models/fashion-mnist/versions/*/manifest.json")
    assert sorted(json.loads(path.read_bytes())["version"] for path in paths) == list(range(1, len(creating) + 1))
