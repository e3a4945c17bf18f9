"""Artifacts in Prefect's UI, from inside a run; outside one (a unit test, say) there is nothing to publish to."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.context import FlowRunContext, TaskRunContext


def _inside_a_run() -> bool:
    return TaskRunContext.get() is not None or FlowRunContext.get() is not None


def publish_table(key: str, rows: list[dict[str, Any]], description: str) -> None:
    if _inside_a_run():
        create_table_artifact(table=rows, key=key, description=description)


def publish_markdown(key: str, markdown: str, description: str) -> None:
    if _inside_a_run():
        create_markdown_artifact(markdown=markdown, key=key, description=description)


def publish_png(key: str, path: Path, description: str) -> None:
    """The picture travels inside the artifact: a laptop has no public address that the UI could load it from."""
    if _inside_a_run():
        encoded = base64.b64encode(path.read_bytes()).decode("ascii")
        create_image_artifact(image_url=f"data:image/png;base64,{encoded}", key=key, description=description)


def publish_progress(key: str, description: str) -> Callable[[float], None]:
    """A progress bar in the UI; call what is returned with the share done, 0 to 1."""
    if not _inside_a_run():
        return lambda share: None
    artifact_id = create_progress_artifact(progress=0.0, key=key, description=description)
    if not isinstance(artifact_id, UUID):
        raise TypeError(f"Prefect was expected to return the artifact's id, it returned {artifact_id!r}.")

    def update(share: float) -> None:
        update_progress_artifact(artifact_id=artifact_id, progress=round(share * 100, 1))

    return update
