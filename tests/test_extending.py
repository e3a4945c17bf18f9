"""Each checklist of docs/extending.md, followed in a copy of the checkout. tests/flows/test_extending.py runs them."""

from pathlib import Path

import pytest

from tasks.runtime.fingerprint import code_digest
from tasks.runtime.stages import STAGES
from tests.extending import apply, copy_checkout, run, run_commands

CHECKLISTS = (
    *("Add a stage", "Add a check", "A key of the recipe or of the promotion rules", "A parameter of its own"),
    *("Add a metric", "Add a deployment"),
)


def test_a_new_stage_rebuilds_no_other(tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    apply("Add a stage", checkout)
    cores = [stage.core for stage in STAGES if stage.core]
    assert [code_digest(core, checkout) for core in cores] == [code_digest(core) for core in cores]


@pytest.mark.parametrize("title", CHECKLISTS)
def test_a_checklist_has_every_step(title: str, tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    apply(title, checkout)
    # Tests of other parts that start processes are left out, because they take as long as all others.
    run_commands(title, checkout, PYTEST_ADDOPTS="-q -k 'not field_faults and not numpy_is_set_up'")
    run(checkout, ".venv/bin/ruff", "check", "--no-cache")
    run(checkout, ".venv/bin/ruff", "format", "--check", "--no-cache")
