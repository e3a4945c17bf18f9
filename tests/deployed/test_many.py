"""Many runs on Postgres, one after the other and at once: each ends as it should, and the server has nothing to say."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.deployed.conftest import Deployed, deployed_at
from tests.deployed.postgres import Postgres

ON_DEMAND = "train-fashion-mnist/on-demand"
IN_A_ROW, AT_ONCE = 20, 5
# Prefect's server logs to the terminal; a failed request is a traceback of uvicorn's, too.
_TROUBLE = re.compile(r"\b(ERROR|CRITICAL|Traceback)\b|Exception")


@pytest.fixture(scope="module")
def on_postgres(
    postgres: Postgres, tmp_path_factory: pytest.TempPathFactory, webhook: tuple[str, Any]
) -> Iterator[Deployed]:
    address = postgres.new_database("many")
    with deployed_at(tmp_path_factory.mktemp("many"), webhook[0], address) as made, made.worker("gpu", "gpu-worker"):
        yield made


def _parameters(seed: int) -> dict[str, Any]:
    return {
        # Training in a run of its own costs as much again: every fifth.
        "train_on": "gpu" if seed % 5 == 0 else "here",
        "training": {"epochs": 1, "validation_size": 100, "seed": seed},
        "promotion": {"minimum_accuracy": 0, "minimum_recall": 0},
    }


def _trouble(deployed: Deployed) -> list[str]:
    return [line for line in deployed.server_log.read_text().splitlines() if _TROUBLE.search(line)]


def test_twenty_runs_in_a_row_and_five_at_once_each_make_their_version(on_postgres: Deployed) -> None:
    one_by_one = [on_postgres.run(ON_DEMAND, **_parameters(seed)) for seed in range(IN_A_ROW)]
    started = [on_postgres.start(ON_DEMAND, **_parameters(IN_A_ROW + seed)) for seed in range(AT_ONCE)]
    runs = [*one_by_one, *(on_postgres.end_of(run) for run in started)]
    assert [run.state_name for run in runs] == ["Completed"] * len(runs), [run.state for run in runs]
    assert _trouble(on_postgres) == []

    for run in runs:
        (manifest,) = on_postgres.made_by(run)
        assert [child.state_name for child in on_postgres.children(run)] == ["Completed"]
        assert manifest["trained_by"]["flow_run_id"] == str(on_postgres.children(run)[0].id)
    paths = on_postgres.artifacts.glob("models/fashion-mnist/versions/*/manifest.json")
    numbers = sorted(json.loads(path.read_bytes())["version"] for path in paths)
    assert numbers == list(range(1, len(runs) + 1))
