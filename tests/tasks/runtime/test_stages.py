from pathlib import Path

import pytest

from tasks.runtime.stages import FETCH, PREPARE, RUN_NAMES, VALIDATE, Stage, output_folders, position


def test_stages_run_in_order_one_split_after_the_other() -> None:
    expected = [
        *("fetch", "ingest train", "validate train", "ingest test", "validate test"),
        *("prepare", "train", "evaluate", "version"),
    ]
    assert [name for name in RUN_NAMES if name in expected] == expected


def test_a_stage_of_another_release_is_last() -> None:
    runs = [("later", None), ("evaluate", None), ("ingest", "test"), ("validate", "train")]
    assert sorted(runs, key=lambda run: position(*run)) == list(reversed(runs))


def test_folders_of_outputs_are_those_that_exist(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("data", "data/b/validation", "data/c/validation", "trained")]
    for folder in (*folders, tmp_path / "models", tmp_path / "prepared.old"):
        folder.mkdir(parents=True)
    assert list(output_folders(tmp_path)) == folders
    assert PREPARE.outputs(tmp_path) == tmp_path / "prepared"


@pytest.mark.parametrize("stage", [FETCH, VALIDATE], ids=lambda stage: stage.name)
def test_a_stage_without_a_single_folder_raises(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no single folder"):
        stage.outputs(tmp_path)
