"""The command line in this process: usage, answers and exit status. Training through it is in tests/flows/."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import main
from tasks.store import append_event, store_folder
from tests.tasks.test_store import _add, _event


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    captured = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, captured.out, captured.err


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASHION_ANN_ARTIFACTS_DIR", str(tmp_path))
    return store_folder(tmp_path, "fashion-mnist")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "--epochs", "0"], "--epochs"),
        (["train", "--epochs", "three"], "--epochs"),
        (["train", "--dropout", "1"], "--dropout"),
        (["train", "--learning-rate", "nan"], "--learning-rate"),
        (["train", "--seed", "-1"], "--seed"),
        (["train", "--epoch-count", "3"], "--epoch-count"),
        (["train", "--data-dir", ""], "FASHION_ANN_DATA_DIR"),
        (["trian"], "trian"),
        ([], "COMMAND"),
        (["show"], "V"),
    ],
)
def test_wrong_usage_is_named_and_ends_with_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    status, out, err = _run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert named in err
    assert "Traceback" not in err


def test_an_abbreviated_flag_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(capsys, "train", "--epoch", "3")[0] == 2


def test_help_names_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = _run(capsys, "train", "--help")
    assert status == 0
    for flag in ("--data-dir", "--artifacts-dir", "--epochs", "--batch-size", "--learning-rate", "--dropout", "--seed"):
        assert flag in out
    assert "(default: 60)" in out


def test_versions_of_an_empty_store(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    assert _run(capsys, "versions", "--json")[:2] == (0, "[]\n")
    status, out, _ = _run(capsys, "versions")
    assert status == 0
    assert "fashion-ann train" in out


def test_versions_and_show_speak_json(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    _add(store, 0.9)
    append_event(store, _event(1))
    status, out, _ = _run(capsys, "versions", "--json")
    (row,) = json.loads(out)
    assert status == 0
    assert (row["version"], row["aliases"], row["test_accuracy"]) == (1, ["champion"], 0.9)
    status, out, _ = _run(capsys, "show", "champion", "--json")
    assert status == 0
    assert json.loads(out)["metrics"] == {"test_accuracy": 0.9}


def test_the_flag_wins_over_the_variable(capsys: pytest.CaptureFixture[str], store: Path, tmp_path: Path) -> None:
    _add(store)
    assert json.loads(_run(capsys, "versions", "--json", "--artifacts-dir", str(tmp_path / "other"))[1]) == []


def test_a_version_that_is_not_there_ends_with_1(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    status, out, err = _run(capsys, "show", "7")
    assert (status, out) == (1, "")
    assert "no version or alias '7'" in err


def test_a_damaged_version_ends_with_5(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    _add(store)
    (store / "versions" / "0001" / "metrics.json").write_text("{}")
    status, out, err = _run(capsys, "show", "1")
    assert (status, out) == (5, "")
    assert "metrics.json: expected sha256" in err


def test_a_folder_that_cannot_be_written_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where a folder belongs")
    status, out, err = _run(capsys, "show", "1", "--artifacts-dir", str(tmp_path))
    assert (status, out) == (1, "")
    assert str(tmp_path / "models") in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    assert "Traceback" in _run(capsys, "show", "7", "--debug")[2]


def test_listing_versions_imports_neither_prefect_nor_a_backend(store: Path) -> None:
    program = (
        "import sys; from cli.main import main\n"
        "try: main(['versions'])\n"
        "except SystemExit: pass\n"
        "slow = {'prefect', 'tensorflow', 'keras', 'great_expectations', 'pandas', 'pyarrow'}\n"
        "print(sorted(slow & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
