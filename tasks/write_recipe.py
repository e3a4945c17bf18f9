"""Write the recipe of the best trial of a study, and a page with all trials."""

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.layout import RECIPE_NAME, TRIALS_PAGE_NAME
from schemas.references import PreparedData, Tuning
from tasks.model.study import Search, is_pruned, recipe_lines
from tasks.reports.rendering import render
from tasks.runtime.files import atomic_write
from tasks.runtime.prefect_artifacts import publish_table


@task(name="recipe", task_run_name="recipe", cache_policy=NO_CACHE)
def write_recipe(search: Search, prepared: PreparedData, folder: Path) -> Tuning:
    """Write the recipe and the page into ``folder``, and publish the table of the page.

    Raises `NoTrialCompleted` if there is no recipe.
    """
    best, finished = search.best(), search.finished()
    recipe = "\n".join(recipe_lines(search, prepared)) + "\n"
    rows = [
        {
            "trial": trial.number,
            "val_accuracy": None if is_pruned(trial) else trial.value,
            "val_loss": trial.user_attrs.get("val_loss"),
            "result": trial.user_attrs.get("reason", f"{trial.user_attrs.get('epochs')} epochs"),
            **{key: str(value) for key, value in search.recipe(trial).model_dump(include=set(search.space)).items()},
        }
        for trial in finished
    ]
    page = render(
        "study.html",
        dataset=prepared.dataset,
        rows=rows,
        keys=list(search.space),
        best=best,
        pruned=sum(map(is_pruned, finished)),
        recipe=recipe,
        train_rows=prepared.train_rows,
        held_out=prepared.validation_rows,
    )
    paths = {folder / RECIPE_NAME: recipe, folder / TRIALS_PAGE_NAME: page}
    for path, content in paths.items():
        with atomic_write(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    recipe_path, page_path = paths
    publish_table(
        f"{prepared.dataset}-trials",
        rows,
        f"{len(finished)} trials, the best first. Recipe of the best: {recipe_path}. Page: {page_path}",
    )
    return Tuning(
        dataset=prepared.dataset,
        finished=len(finished),
        pruned=sum(map(is_pruned, finished)),
        best=best.number,
        val_accuracy=best.value or 0.0,
        recipe=recipe_path,
        page=page_path,
    )
