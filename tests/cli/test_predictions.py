"""The commands `predictions` and `label`."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from tests.cli.conftest import Run
from tests.watched import Simulation


def test_predictions_and_labels_as_text_and_json(run: Run, tmp_path: Path) -> None:
    artifacts = tmp_path / "artifacts"
    simulation, now = Simulation(artifacts), datetime.now(UTC)
    _, images, labels = simulation.predict(now, 300)
    simulation.predict(now - timedelta(days=1), change=lambda images: 255 - images)
    folder = ("--artifacts-dir", artifacts)
    status, out, _ = run("predictions", "--json", *folder)
    found = json.loads(out)
    assert status == 0
    assert [(day["version"], day["rows"], day["drifted"]) for day in found["days"]] == [(1, 500, True), (1, 300, False)]
    assert found["drifted"] == [f"{now - timedelta(days=1):%Y-%m-%d} version 1"]
    assert Path(found["page"]).is_file()
    csv = tmp_path / "labels.csv"
    first, unique = np.unique(images, axis=0, return_index=True)
    header = ",".join(["label", *(f"pixel{number}" for number in range(1, 785))])
    np.savetxt(csv, np.column_stack([labels[unique], first]), fmt="%d", delimiter=",", header=header, comments="")
    status, out, _ = run("label", csv, "--json", *folder)
    labelled = json.loads(out)
    assert (status, labelled["images"], labelled["matched"]) == (0, len(first), len(first))
    assert labelled["days"][0]["measured"]["labelled"] == 300
    status, out, _ = run("label", csv, *folder)
    assert f"{len(first)} labelled images, of which {len(first)} were predicted" in out
    assert "on 300 of 300 rows; estimated" in out
    status, out, _ = run("predictions", *folder)
    assert "expected at most 0.04" in out
    assert "within the bounds" in out


def test_no_predictions_and_wrong_days(run: Run, tmp_path: Path) -> None:
    assert run("predictions", "--artifacts-dir", tmp_path)[:2] == (0, "No predictions in the last 90 days.\n")
    status, _, err = run("predictions", "--days", "0", "--artifacts-dir", tmp_path)
    assert status == 2
    assert "--days" in err


def test_days_are_listed_if_no_page_can_be_written(run: Run, tmp_path: Path) -> None:
    simulation = Simulation(tmp_path)
    simulation.predict(datetime.now(UTC), 300)
    (tmp_path / "predictions" / "fashion-mnist" / "predictions.html").mkdir()
    status, out, err = run("predictions", "--json", "--artifacts-dir", tmp_path)
    assert (status, json.loads(out)["page"], len(json.loads(out)["days"])) == (0, None, 1)
    assert "no page was written" in err
