"""Publish artifacts to Prefect's UI from inside a run. Outside a run, such as in a unit test, nothing is published."""

import base64
import contextvars
import logging
import re
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

# Shorter than the two seconds within which the UI is expected to show progress.
UPDATE_SECONDS = 1.0

# Characters with a meaning in Markdown: anywhere, not inside a word, at the start of a line, and after its number.
_MARKDOWN = re.compile(r"[\\`*~<>\[\]|#&!]|(?<!\w)_|_(?!\w)|^[-+=]|(?:(?<=^\d)|(?<=^\d\d))[.)](?=\s|$)", re.MULTILINE)


def inside_a_run() -> bool:
    """Return whether this code runs in a flow or task run."""
    return TaskRunContext.get() is not None or FlowRunContext.get() is not None


def publish_table(key: str, rows: list[dict[str, Any]], description: str) -> None:
    """Publish a table whose columns have the order of the first row's keys."""
    if inside_a_run():
        table = [{name: plain_cell(value) for name, value in row.items()} for row in rows]
        create_table_artifact(table=table, key=key, description=description)


def plain_cell(value: Any) -> Any:
    """Return a cell that the UI shows as it is: it renders a text as Markdown, so ">= 0.1" became a quotation."""
    return _MARKDOWN.sub(r"\\\g<0>", value) if isinstance(value, str) else value


def publish_markdown(key: str, markdown: str, description: str) -> None:
    if inside_a_run():
        create_markdown_artifact(markdown=markdown, key=key, description=description)


def publish_file_link(key: str, path: Path, description: str) -> None:
    """Publish a link to a file on the machine of the run."""
    if inside_a_run():
        create_link_artifact(link=path.absolute().as_uri(), link_text=path.name, key=key, description=description)


def name_flow_run(name: str, tags: Iterable[str]) -> None:
    """Rename the current flow run, and add ``tags`` to those that it has."""
    if flow_run.id is not None:
        with SyncClientContext.get_or_create() as context:
            context.client.update_flow_run(UUID(flow_run.id), name=name, tags=sorted({*(flow_run.tags or ()), *tags}))


def publish_svg(key: str, svg: str, description: str) -> None:
    """Publish a picture inside the artifact, because the UI cannot load files of the machine of the run."""
    if inside_a_run():
        encoded = base64.b64encode(svg.encode()).decode("ascii")
        create_image_artifact(image_url=f"data:image/svg+xml;base64,{encoded}", key=key, description=description)


@contextmanager
def publish_progress(key: str, description: str) -> Iterator[Callable[[float], None]]:
    """Show a progress bar in the UI while the block runs. Yields a function that sets the share done, 0 to 1.

    A thread sends the share once per second, also an unchanged one, to show that the work continues. Errors of the
    server do not stop the work. The end of the block waits for the last update for at most two seconds.
    """
    if not inside_a_run():
        yield lambda share: None
        return
    current, failed, finished = 0.0, False, threading.Event()
    artifact_id: Any = None

    def show(share: float) -> None:
        nonlocal current
        current = share

    def send() -> None:
        nonlocal artifact_id, failed
        percent = round(current * 100, 1)
        try:
            if artifact_id is None:
                artifact_id = create_progress_artifact(progress=percent, key=key, description=description)
            else:
                update_progress_artifact(artifact_id=artifact_id, progress=percent)
            failed = False
        except Exception as error:  # the server is unavailable; the client retried for a minute
            if not failed:
                logger.warning("the progress bar in Prefect is not updated: %s", error)
            failed = True

    def send_until_finished() -> None:
        send()
        while not finished.wait(UPDATE_SECONDS):
            send()
        send()  # the final share

    # Prefect finds the run and its API in context variables, which a thread does not inherit.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(send_until_finished,), daemon=True)
    thread.start()
    try:
        yield show
    finally:
        finished.set()
        thread.join(2)
