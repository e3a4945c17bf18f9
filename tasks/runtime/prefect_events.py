"""Send events to the Prefect API, and remember which were sent."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from prefect.client.orchestration import get_client
from prefect.events import Event

from schemas.errors import StoredArtifactError
from tasks.runtime.files import atomic_write, write_json
from tasks.runtime.prefect_artifacts import inside_a_run
from tasks.runtime.stored_file import read_json

logger = logging.getLogger(__name__)

Announced = TypeVar("Announced")


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


def announce(
    events: Sequence[dict[str, Any]],
    memory: Path,
    content: Mapping[str, Any],
    send: Callable[[Sequence[dict[str, Any]]], None] = send_events,
) -> None:
    """Send events, and write ``content`` to the file ``memory`` after the API has accepted them.

    A kill in between leaves the earlier file, so the next run sends the events again.
    """
    memory.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(memory) as temporary:
        write_json(temporary, content)  # first: on a full disk every run would send the same events
        send(events)


def read_announced(memory: Path, parse: Callable[[Any], Announced], missing: Announced) -> Announced:
    """Return ``parse`` of the JSON that `announce` wrote, ``missing`` without a file.

    An unreadable file counts as none, with a warning: its events are sent again.
    """
    try:
        return parse(read_json(memory))
    except (StoredArtifactError, KeyError, TypeError) as error:
        if os.path.lexists(memory):
            logger.warning("%s cannot be read and is ignored: %s", memory, error)
        return missing
