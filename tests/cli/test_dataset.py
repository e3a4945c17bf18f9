"""`dataset init`, `list`, `show` and `profile`, as a person types them."""

import json
from pathlib import Path

import pytest

from cli.printed_commands import runnable
from tests.cli.conftest import Run
from tests.own_data import digits, split, write_csv


@pytest.fixture
def csvs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with CSVs of 8 x 8 pixels without a header."""
    monkeypatch.setenv("FASHION_ANN_DATASETS_DIR", str(tmp_path / "datasets"))
    monkeypatch.setenv("FASHION_ANN_ARTIFACTS_DIR", str(tmp_path / "artifacts"))
    (tmp_path / "my csvs").mkdir()
    images, labels = digits(8, 1)
    for name, (some, classes) in split(images[:600], labels[:600]).items():
        write_csv(tmp_path / "my csvs" / f"{name}.csv", some, classes)
    return tmp_path / "my csvs"


def test_init_prints_what_to_look_at(run: Run, csvs: Path) -> None:
    status, out, err = run("dataset", "init", "mine", "--from", csvs)
    assert (status, err) == (0, "")
    first, *_, last = out.splitlines()
    assert first == f"wrote {csvs.parent / 'datasets' / 'mine.toml'} and mine.json. Look at:"
    assert "- labels: the classes have no names yet." in out
    assert "first image of train, label" in out
    assert last == runnable(f"then run `fashion-ann train --dataset mine --data-dir '{csvs}'`")


def test_the_new_dataset_is_listed_and_shown(run: Run, csvs: Path) -> None:
    made = json.loads(run("dataset", "init", "mine", "--from", csvs, "--holdout", "0.2", "--json")[1])
    assert made["dataset"] == "mine"
    assert made["notes"]
    listed = json.loads(run("dataset", "list", "--json")[1])
    assert [entry["name"] for entry in listed] == ["digits", "fashion-mnist", "mine"]
    assert run("dataset", "list")[1].splitlines()[2] == f"mine: 8 x 8, 10 classes, {made['path']}"
    shown = json.loads(run("dataset", "show", "mine", "--json")[1])
    assert (shown["path"], shown["holdout"], shown["files"]["test"]) == (made["path"], 0.2, "train.csv")
    text = run("dataset", "show", "mine")[1]
    assert "- columns: without a header: label, pixel1 .. pixel64" in text
    assert "- test split: about 20% of the rows" in text
    assert run("contract", "--dataset", "mine")[1] in text


def test_a_wrong_file_is_an_error_of_its_dataset_alone(run: Run, csvs: Path) -> None:
    run("dataset", "init", "mine", "--from", csvs)
    (csvs.parent / "datasets" / "bad.toml").write_text("height = 1")
    status, out, err = run("dataset", "list")
    assert status == 2
    assert "mine: 8 x 8" in out
    assert "bad.toml: height: Input should be greater than or equal to 2, received 1" in err
    assert run("dataset", "show", "mine")[0] == 0
    for command in (["dataset", "show", "bad"], ["versions", "--dataset", "bad"], ["dataset", "show", "other"]):
        status, _, err = run(*command)
        assert status == 2
        assert (
            "bad.toml" in err or "There is no dataset 'other': expected one of bad, digits, fashion-mnist, mine" in err
        )


def test_profile_is_made_again(run: Run, csvs: Path) -> None:
    run("dataset", "init", "mine", "--from", csvs)
    profile = csvs.parent / "datasets" / "mine.json"
    before = profile.read_bytes()
    profile.unlink()
    assert "baseline profile: none" in run("dataset", "show", "mine")[1]
    assert run("dataset", "profile", "mine", "--data-dir", csvs) == (0, f"wrote {profile}\n", "")
    assert profile.read_bytes() == before
    status, _, err = run("dataset", "profile", "mine", "--data-dir", csvs.parent / "datasets")
    assert status == 3
    assert "contains no CSV of mine. Expected train.csv and test.csv" in " ".join(err.splitlines())


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["a_b", "--from", "."], 2, "Use a-b."),
        (["mine", "--from", "none"], 2, "is not a folder"),
        (
            ["mine", "--from", ".", "--like", "other"],
            2,
            runnable("digits, fashion-mnist. `fashion-ann dataset init NAME --from DIR` makes"),
        ),
        (["mine", "--from", ".", "--holdout", "1"], 2, "--holdout: expected a share between 0 and 1, received 1"),
        (["digits", "--from", "."], 2, "digits.toml exists"),
    ],
)
def test_init_names_what_is_wrong(run: Run, csvs: Path, arguments: list[str], status: int, message: str) -> None:
    got, _, err = run("dataset", "init", *arguments)
    assert got == status
    assert message in err
    assert not (csvs.parent / "datasets").exists()
