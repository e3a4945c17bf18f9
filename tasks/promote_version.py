"""Promote a version to champion."""

import logging
from pathlib import Path

from prefect import task
from prefect.runtime import flow_run

from schemas.store import AliasEvent
from tasks.registry import champion
from tasks.registry.store import ModelStore
from tasks.registry.version_events import send_unsent
from tasks.runtime.prefect_events import sender_of_run

logger = logging.getLogger(__name__)


@task(name="promote", task_run_name="promote")
def promote(dataset: str, version: str, reason: str, artifacts_dir: Path) -> AliasEvent:
    """Run `tasks.registry.champion.promote`, send its event, and return the logged move."""
    store = ModelStore.of(artifacts_dir, dataset)
    move = champion.promote(store, store.resolve(version), reason, flow_run=flow_run.id)
    for line in move.cleaned:
        logger.warning("%s", line)
    send_unsent(store, sender_of_run())
    return move.event
