"""Send events to the Prefect API."""

from collections.abc import Callable, Sequence
from typing import Any

from prefect.client.orchestration import get_client
from prefect.events import Event

from tasks.runtime.prefect_artifacts import inside_a_run


def send_events(events: Sequence[dict[str, Any]]) -> None:
    """Send events, as JSON of `prefect.events.Event`, and return when the API has accepted them.

    Prefect's `emit_event` only queues an event, so the process could end before it is sent.
    """
    body = [Event.model_validate(event).model_dump(mode="json") for event in events]
    if body:
        with get_client(sync_client=True) as client:
            client.request("POST", "/events", json=body)


def sender_of_run() -> Callable[[Sequence[dict[str, Any]]], None] | None:
    """Return `send_events` inside a run. Outside of one, as in a unit test, there is no API: return None."""
    return send_events if inside_a_run() else None
