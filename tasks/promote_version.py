"""Promote a version to champion."""

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from schemas.store import AliasEvent
from tasks.registry import champion
from tasks.registry.store import ModelStore
from tasks.registry.version_events import finish_move
from tasks.reports.mlflow_sync import update_mlflow
from tasks.reports.versions_page import write_versions_page
from tasks.runtime.prefect_events import sender_of_run


@task(name="promote", task_run_name="promote", cache_policy=NO_CACHE)
def promote(
    dataset: str, version: str, reason: str, artifacts_dir: Path, minimum_shadow_rows: int | None = None
) -> AliasEvent:
    """Run `tasks.registry.champion.promote`, send its event, update MLflow, and return the logged move."""
    store = ModelStore.of(artifacts_dir, dataset).refresh()
    move = champion.promote(
        store, store.resolve(version), reason, flow_run=flow_run.id, minimum_shadow_rows=minimum_shadow_rows
    )
    write_versions_page(store)
    event = finish_move(store, move, sender_of_run())
    update_mlflow(store)
    return event
