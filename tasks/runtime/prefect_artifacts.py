"""Artifacts in Prefect's UI, from inside a run; outside one (a unit test, say) there is nothing to publish to."""

import base64
import contextvars
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.context import FlowRunContext, SyncClientContext, TaskRunContext
from prefect.runtime import flow_run

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_MOVES = 1.0
_SECONDS_FOR_THE_LAST_MOVE = 2.0


def _inside_a_run() -> bool:
    return TaskRunContext.get() is not None or FlowRunContext.get() is not None


def publish_table(key: str, rows: list[dict[str, Any]], description: str) -> None:
    if _inside_a_run():
        create_table_artifact(table=rows, key=key, description=description)


def publish_markdown(key: str, markdown: str, description: str) -> None:
    if _inside_a_run():
        create_markdown_artifact(markdown=markdown, key=key, description=description)


def publish_file_link(key: str, path: Path, description: str) -> None:
    """A link to a file of the machine that the run is on."""
    if _inside_a_run():
        create_link_artifact(link=path.absolute().as_uri(), link_text=path.name, key=key, description=description)


def name_flow_run(name: str, tags: Iterable[str]) -> None:
    """Give the flow run that this is part of its name, and these tags besides those that it has."""
    if not _inside_a_run() or flow_run.id is None:
        return
    with SyncClientContext.get_or_create() as context:
        context.client.update_flow_run(
            flow_run_id=UUID(flow_run.id), name=name, tags=sorted({*(flow_run.tags or ()), *tags})
        )


def publish_png(key: str, path: Path, description: str) -> None:
    """The picture travels inside the artifact: a laptop has no public address that the UI could load it from."""
    if _inside_a_run():
        encoded = base64.b64encode(path.read_bytes()).decode("ascii")
        create_image_artifact(image_url=f"data:image/png;base64,{encoded}", key=key, description=description)


@contextmanager
def publish_progress(key: str, description: str) -> Iterator[Callable[[float], None]]:
    """A progress bar in the UI for as long as the block runs, which tells it the share done, 0 to 1, at any time.

    A thread sends it once a second, also when there is no news: whoever watches sees that the work goes on. No error
    of the server ends the work; at the end of the block it is waited for two seconds at most.
    """
    if not _inside_a_run():
        yield lambda share: None
        return
    shown, over = 0.0, threading.Event()

    def show(share: float) -> None:
        nonlocal shown
        shown = share

    def send_until_over() -> None:
        artifact_id: UUID | None = None
        failed = last = False
        while not last:
            last = over.is_set()  # once more then, for where it ended
            percent = round(shown * 100, 1)
            try:
                if artifact_id is None:
                    made = create_progress_artifact(progress=percent, key=key, description=description)
                    if not isinstance(made, UUID):
                        raise TypeError(f"Prefect was expected to return the artifact's id, it returned {made!r}.")
                    artifact_id = made
                else:
                    update_progress_artifact(artifact_id=artifact_id, progress=percent)
                failed = False
            except Exception as error:  # of a server that is away: the client has tried for a minute
                if not failed:
                    logger.warning("the progress bar in Prefect stays where it is: %s", error)
                failed = True
            if not last:
                over.wait(_SECONDS_BETWEEN_MOVES)

    # Prefect knows the run and its API by context variables, which a thread does not inherit.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(send_until_over,), daemon=True)
    thread.start()
    try:
        yield show
    finally:
        over.set()
        thread.join(_SECONDS_FOR_THE_LAST_MOVE)
