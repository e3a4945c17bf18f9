"""Predictions beyond a bound are announced once, on a real Prefect server."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client

from flows.watch_predictions import watch_predictions
from tasks.watch_predictions import EVENT
from tests.watched import Simulation


def events() -> list[dict[str, Any]]:
    with get_client(sync_client=True) as client:
        body = {"filter": {"event": {"name": [EVENT]}, "order": "ASC"}, "limit": 50}
        found: list[dict[str, Any]] = client.request("POST", "/events/filter", json=body).json()["events"]
    return found


def test_a_day_beyond_a_bound_is_announced_once(server: str, tmp_path: Path) -> None:
    simulation, now = Simulation(tmp_path), datetime.now(UTC)
    simulation.predict(now)
    assert watch_predictions(artifacts_dir=tmp_path).announced == ()
    simulation.predict(now, change=lambda images: 255 - images)
    watched = watch_predictions(artifacts_dir=tmp_path)
    assert watched.announced == watched.drifted == (f"{now:%Y-%m-%d} version 1",)
    simulation.predict(now, change=lambda images: 255 - images)
    assert watch_predictions(artifacts_dir=tmp_path).announced == ()
    # Without the memory the event is sent again. The server stores it once.
    (tmp_path / "announced" / "fashion-mnist-predictions.json").unlink()
    assert watch_predictions(artifacts_dir=tmp_path).announced == watched.announced
    deadline = time.monotonic() + 30
    while not (found := events()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    (event,) = found
    assert event["resource"]["prefect.resource.id"] == "fashion-ann.predictions.fashion-mnist.1"
    assert event["payload"]["rows"] == 1_000
    assert "prediction_drift" in event["payload"]["reasons"][0]
    assert watched.page.is_file()
    with get_client(sync_client=True) as client:
        keys = {artifact.key for artifact in client.read_artifacts()}
    assert {"fashion-mnist-predictions", "fashion-mnist-predictions-page"} <= keys
