"""`fashion-ann versions` shows the differences between versions."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.registry.store import ModelStore
from tests.cli.conftest import Run
from tests.stored import add_promoted, add_stored, data_facts

LAYERS = [256, 128]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a store of three versions that differ in epochs, layers, the train CSV and the note."""
    monkeypatch.setenv("FASHION_ANN_ARTIFACTS_DIR", str(tmp_path))
    root = ModelStore.of(tmp_path, "fashion-mnist").root
    recipe: dict[str, Any] = {"seed": 0, "epochs": 45, "dropout": 0.05}
    add_promoted(root, accuracy=0.85, configuration=recipe)
    add_stored(root, 0.9, configuration={**recipe, "epochs": 9}, note="fewer epochs")
    add_stored(root, 0.7, configuration={**recipe, "epochs": 100}, data=data_facts("ab" * 32))
    return root


def table(text: str) -> list[list[str]]:
    """Return the cells of each line. Two blanks or more separate columns; an empty cell is left out."""
    return [[cell for cell in line.strip().split("  ") if cell.strip()] for line in text.splitlines()]


def test_the_columns_are_the_settings_that_differ(run: Run, store: Path) -> None:
    status, out, _ = run("versions")
    header, *rows = table(out)
    assert status == 0
    columns = ["version", "created", "accuracy", "loss", "verdict", "aliases", "epochs", "train_data", "note"]
    assert [name.strip() for name in header] == columns
    stripped = [[cell.strip() for cell in row] for row in rows]
    assert stripped[0][3:] == ["0.3000", "promoted", "champion", "45", "00000000"]
    assert stripped[1][3:] == ["0.3000", "kept", "9", "00000000", "fewer epochs"]
    assert stripped[2][3:] == ["0.3000", "kept", "100", "abababab"]
    rows_of_json = json.loads(run("versions", "--json")[1])
    assert [row["settings"]["epochs"] for row in rows_of_json] == [45, 9, 100]
    assert [row["note"] for row in rows_of_json] == [None, "fewer epochs", None]


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        (["--last", "2"], [2, 3]),
        (["--last", "9"], [1, 2, 3]),
        (["--sort", "accuracy"], [2, 1, 3]),
        (["--sort", "accuracy", "--last", "2"], [2, 3]),
        (["--sort", "epochs"], [2, 1, 3]),
        (["--sort", "note"], [2, 1, 3]),
        (["--sort", "verdict"], [2, 3, 1]),
    ],
)
def test_versions_are_sorted_and_limited(run: Run, store: Path, arguments: list[str], numbers: list[int]) -> None:
    rows = json.loads(run("versions", "--json", *arguments)[1])
    assert [row["version"] for row in rows] == numbers
    printed = run("versions", *arguments)[1].splitlines()[1:]
    assert [int(line.split()[0]) for line in printed] == numbers


@pytest.mark.parametrize("arguments", [["--sort", "colour"], ["--last", "0"], ["--last", "-1"], ["--last", "few"]])
def test_a_wrong_column_or_number_exits_with_2(run: Run, store: Path, arguments: list[str]) -> None:
    status, out, err = run("versions", *arguments)
    assert (status, out) == (2, "")
    assert arguments[0] in err


def test_equal_versions_have_no_further_columns(run: Run, store: Path) -> None:
    header, _ = table(run("versions", "--last", "1")[1])
    assert [name.strip() for name in header] == ["version", "created", "accuracy", "loss", "verdict", "aliases"]


def test_the_note_is_shown(run: Run, store: Path) -> None:
    versions = json.loads(run("versions", "--json")[1])
    assert versions[1]["note"] == "fewer epochs"


@pytest.mark.parametrize("note", ["", " ", "x" * 501])
def test_a_blank_or_long_note_exits_with_2(run: Run, store: Path, note: str) -> None:
    status, _, err = run("train", "--note", note)
    assert status == 2
    assert "--note" in err
