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
        # A run of its own for the training costs as much again: every fifth has one.
        "train_on": "gpu" if seed % 5 == 0 else "here",
        "training": {"epochs": 1, "validation_size": 100, "seed": seed},
        "promotion": {"minimum_accuracy": 0, "minimum_recall": 0},
    }


def test_twenty_runs_in_a_row_and_five_at_once_end_as_they_should(on_postgres: Deployed) -> None:
    # Each seed twice: the first makes a version, the second finds it.
    in_a_row = [on_postgres.run(ON_DEMAND, **_parameters(number // 2)) for number in range(IN_A_ROW)]
    assert [run.state_name for run in in_a_row] == ["Completed", "Nothing new"] * (IN_A_ROW // 2)
    started = [on_postgres.start(ON_DEMAND, **_parameters(IN_A_ROW + number)) for number in range(AT_ONCE)]
    at_once = [on_postgres.end_of(run) for run in started]
    assert [run.state_name for run in at_once] == ["Completed"] * AT_ONCE, [run.state for run in at_once]
    said = on_postgres.server_log.read_text().splitlines()
    assert [line for line in said if _TROUBLE.search(line)] == []

    made = [*in_a_row[::2], *at_once]
    for run in made:
        (manifest,) = on_postgres.made_by(run)
        (child,) = on_postgres.children(run)
        assert child.state_name == "Completed"
        assert manifest["trained_by"]["flow_run_id"] == str(child.id)
    paths = on_postgres.artifacts.glob("models/fashion-mnist/versions/*/manifest.json")
    assert sorted(json.loads(path.read_bytes())["version"] for path in paths) == list(range(1, len(made) + 1))
