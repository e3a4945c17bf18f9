"""Make the previous champion champion again."""

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


@task(name="rollback", task_run_name="rollback", cache_policy=NO_CACHE)
def rollback(dataset: str, reason: str, artifacts_dir: Path) -> AliasEvent:
    """Run `tasks.registry.champion.rollback`, send its event, update MLflow, and return the logged move."""
    store = ModelStore.of(artifacts_dir, dataset)
    move = champion.rollback(store, reason, flow_run=flow_run.id)
    write_versions_page(store)
    event = finish_move(store, move, sender_of_run())
    update_mlflow(store)
    return event
