"""The command line in this process: usage errors, output and exit status. tests/flows/ trains through it."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from cli.arguments import path_argument, read_config, read_space
from cli.contract_page import PAGE
from cli.main import COMMANDS, command_parser
from cli.printed_commands import runnable
from schemas.config import DEFAULT_SPACE, MLFLOW_VARIABLE, PROJECT_ROOT, TrainingConfig
from tasks.registry.store import ModelStore, StoredVersion
from tasks.runtime.files import write_json
from tests.cli.conftest import Run
from tests.field_faults import field_fault
from tests.stored import add_promoted, add_stored, event, make_older, metrics, verdict


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASHION_ANN_ARTIFACTS_DIR", str(tmp_path))
    return ModelStore.of(tmp_path, "fashion-mnist").root


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "--epochs", "0"], "--epochs"),
        (["train", "--epochs", "three"], "--epochs"),
        (["train", "--dropout", "1"], "--dropout"),
        (["train", "--learning-rate", "nan"], "--learning-rate"),
        (["train", "--seed", "-1"], "--seed"),
        (["train", "--epoch-count", "3"], "--epoch-count"),
        (["train", "--epoch", "3"], "--epoch"),  # no abbreviations
        (["train", "--device", "tpu"], "--device"),
        (["train", "--hidden-units", "128-64"], "--hidden-units"),
        (["train", "--hidden-units", "128,0"], "--hidden-units"),
        (["train", "--optimizer", "lion"], "--optimizer"),
        (["train", "--config", "/no/such.toml"], "/no/such.toml: expected a TOML file"),
        (["train", "--promotion-policy", "always"], "--promotion-policy"),
        *((["train", "--bad-rows", wrong], "--bad-rows") for wrong in ("few", "-1", "1.5", "101%", "%", "5 %", "")),
        (["train", "--data-dir", ""], "FASHION_ANN_DATA_DIR"),
        (["train", "--dataset", "mnist"], "--dataset"),
        (["trian"], "trian"),
        ([], "COMMAND"),
        (["show"], "V"),
        (["gc", "--keep", "0"], "--keep"),
        (["alias", "1", "staging"], "--reason"),
        (["promote", "1"], "--reason"),
        (["gc", "--keep", "few"], "--keep"),
        (["doctor", "--data-dir", ""], "FASHION_ANN_DATA_DIR"),
        (["quarantine"], "ACTION"),
        (["quarantine", "export", "train-0.parquet", "--split", "train"], "--split"),
    ],
)
def test_wrong_usage_exits_with_2(run: Run, arguments: list[str], named: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert named in err
    assert "Traceback" not in err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_flag(run: Run, name: str) -> None:
    status, out, _ = run(*name.split(), "--help")
    assert status == 0
    assert {"--artifacts-dir", "--json", "--debug"} <= set(out.split())
    if name == "train":
        for key, value in TrainingConfig():
            assert f"--{key.replace('_', '-')} " in out
            assert f"(default: {'off' if value is None else value})" in " ".join(out.split())


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("epoch = 3", "recipe.toml, epoch: Extra inputs"),
        ("epochs = 0", "recipe.toml, epochs: Input should be greater"),
        ("hidden_units = [64, 0]", "recipe.toml, hidden_units: Input should be greater"),
        ("epochs 3", "line 1"),
        ("epochs = '\xff'", "expected a TOML file"),
    ],
)
def test_a_faulty_recipe_file_is_wrong_usage(run: Run, tmp_path: Path, content: str, named: str) -> None:
    (tmp_path / "recipe.toml").write_bytes(content.encode("latin-1"))
    status, out, err = run("train", "--config", tmp_path / "recipe.toml")
    assert (status, out) == (2, "")
    assert named in err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--trials", "0"], "--trials: Input should be greater than or equal to 1, received 0"),
        (["--timeout", "0"], "--timeout: Input should be greater than 0, received 0.0"),
        (["--parallel", "0"], "--parallel: "),
        (["--held-out", "9"], "--held-out: "),
        (["--space", "absent.toml"], "absent.toml: expected a TOML file"),
        (["--space", "space.toml"], "space.toml, dropout: Input should be less than 1, received 2"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_faulty_flags_of_tune_are_wrong_usage(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("space.toml").write_text("dropout = {low = 0.1, high = 2}")
    status, out, err = run("tune", *flags)
    assert (status, out) == (2, "")
    assert named in err


def test_a_setting_that_a_flag_gives_is_not_searched() -> None:
    options = command_parser().parse_args(["tune", "--dropout", "0.1", "--epochs", "3"])
    assert set(read_space(options, None)) == DEFAULT_SPACE.keys() - {"dropout"}


def test_show_writes_the_recipe_that_train_reads(run: Run, store: Path, tmp_path: Path) -> None:
    recipe = TrainingConfig(epochs=7, hidden_units=[512, 256], optimizer="sgd", learning_rate=1e-5, early_stopping=3)
    add_stored(store, configuration=recipe.model_dump())
    status, out, _ = run("show", "1", "--config")
    assert status == 0
    (file := tmp_path / "recipe.toml").write_text(out)
    options = command_parser().parse_args(["train", "--config", str(file), "--seed", "5"])
    assert read_config(TrainingConfig, options, file) == recipe.model_copy(update={"seed": 5})
    assert json.loads(run("show", "1", "--config", "--json")[1]) == recipe.model_dump()


def test_show_and_why_print_the_settings_used(run: Run, store: Path) -> None:
    recipe = TrainingConfig(batch_size=256, optimizer="rmsprop")
    write = {"verdict.json": {**verdict(None), "policy": "better", "rules": []}}
    add_stored(
        store,
        configuration=recipe.model_dump(),
        batch_size_used=192,
        write=lambda folder: [write_json(folder / name, content) for name, content in write.items()],
    )
    for command in ("show", "why"):
        out = run(command, "1")[1]
        assert "batch_size 192, " in out
        assert "optimizer rmsprop, " in out


def test_lists_an_empty_store(run: Run, store: Path) -> None:
    assert run("versions", "--json")[:2] == (0, "[]\n")
    status, out, _ = run("versions")
    assert status == 0
    assert "fashion-ann train" in out


def test_prints_versions_as_json(run: Run, store: Path, tmp_path: Path) -> None:
    add_stored(store, 0.9)
    ModelStore(store).aliases.append(event(1))
    status, out, _ = run("versions", "--json")
    (row,) = json.loads(out)
    assert status == 0
    assert (row["version"], row["aliases"], row["test_accuracy"]) == (1, ["champion"], 0.9)
    status, out, _ = run("show", "champion", "--json")
    assert status == 0
    assert json.loads(out)["metrics"] == metrics(0.9)
    # The flag overrides the variable, and each dataset has its own store.
    assert json.loads(run("versions", "--json", "--artifacts-dir", tmp_path / "other")[1]) == []
    assert json.loads(run("versions", "--json", "--dataset", "digits")[1]) == []
    assert "digits" in run("show", "1", "--dataset", "digits")[2]


def test_unknown_version_exits_with_1(run: Run, store: Path) -> None:
    status, out, err = run("show", "7")
    assert (status, out) == (1, "")
    assert err.startswith("fashion-ann show: ")
    assert "no version or alias '7'" in err
    assert "Traceback" in run("show", "7", "--debug")[2]


def test_damaged_version_exits_with_5(run: Run, store: Path) -> None:
    add_stored(store)
    (store / "versions" / "0001" / "metrics.json").write_text("{}")
    status, out, err = run("show", "1")
    assert (status, out) == (5, "")
    assert "metrics.json: expected sha256" in err


def test_names_a_file_in_place_of_a_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where a folder belongs")
    status, out, err = run("show", "1", "--artifacts-dir", tmp_path)
    assert (status, out) == (5, "")
    assert str(tmp_path / "models") in err
    assert "Traceback" not in err


def test_printed_commands_have_no_password(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MLFLOW_VARIABLE, "")
    status, _, err = run("promote", "1", "--reason", "a test", "--mlflow", "http://user:secret@127.0.0.1:1")
    assert status == 1
    assert "train --mlflow http://127.0.0.1:1` first" in err
    assert "secret" not in err
    status, _, err = run("promote", "1", "--reason", "a test", "--mlflow", "user:secret@host")
    assert status == 2
    assert "argument --mlflow" in err
    assert "secret" not in err


def test_gc_lists_with_dry_run_and_then_deletes(run: Run, store: Path) -> None:
    for _ in range(3):
        add_stored(store)
    ModelStore(store).aliases.append(event(1))
    size = sum(path.stat().st_size for path in (store / "versions" / "0002").iterdir())
    expected = {
        "removed": [{"kind": "version", "path": str(store / "versions" / "0002"), "bytes": size}],
        "kept_versions": [1, 3],
        "bytes": size,
    }
    for dry_run in (True, False):
        status, out, _ = run("gc", "--keep", "1", "--json", *(["--dry-run"] if dry_run else []))
        result = json.loads(out)
        assert status == 0
        assert {key: result[key] for key in expected} == expected
        assert result["dry_run"] is dry_run
        assert isinstance(result["notes"], list)
        assert (store / "versions" / "0002").exists() is dry_run
    status, out, _ = run("gc", "--keep", "1")
    assert status == 0
    assert "deleted 0 items, 0 bytes; versions kept: 1, 3" in out


def test_gc_reports_a_read_only_store(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        add_stored(store)

    def fail(self: Path, target: Path) -> Path:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "rename", fail)
    status, out, err = run("gc", "--keep", "1")
    assert status == 1
    assert err == f"fashion-ann gc: {store / 'versions' / '0001'}: Read-only file system.\n"
    # The list comes before the first deletion, and is that of a dry run.
    status, planned, _ = run("gc", "--keep", "1", "--dry-run")
    assert (status, out) == (0, planned.splitlines(keepends=True)[0])


WRITERS = {
    "train": [],
    "tune": [],
    "predict": ["images.csv", "--output", "out.csv"],
    "quarantine export": [],
    "compare": ["1", "2"],
    "promote": ["1", "--reason", "a test"],
    "rollback": ["--reason", "a test"],
    "alias": ["1", "staging", "--reason", "a test"],
    "sign": ["1", "--key", "key.pem"],
    "reproduce": ["1"],
    "export": ["1", "--format", "keras", "--output", "exported"],
    "predictions": [],
    "label": ["labels.csv"],
    "gc": [],
    "up": [],
}


def test_the_writing_commands_are_known() -> None:
    assert {name for name, command in COMMANDS.items() if command.writes} == set(WRITERS)


@pytest.mark.parametrize(("artifacts", "data"), [("both", "both/data"), ("both/artifacts", "both")])
@pytest.mark.parametrize("name", WRITERS)
def test_writing_commands_require_separate_folders(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, artifacts: str, data: str
) -> None:
    monkeypatch.setenv("FASHION_ANN_DATA_DIR", str(tmp_path / data))
    (tmp_path / data).mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    status, out, err = run(*name.split(), "--artifacts-dir", tmp_path / artifacts, *WRITERS[name])
    assert (status, out) == (2, "")
    assert " is inside the " in err
    assert sorted(tmp_path.rglob("*")) == before


def test_reading_commands_do_not_require_separate_folders(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASHION_ANN_DATA_DIR", str(tmp_path / "data"))
    assert run("versions", "--artifacts-dir", tmp_path)[0] == 0


def test_paths_are_those_of_the_callers_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASHION_ANN_ARTIFACTS_DIR", "by-variable")
    assert str(tmp_path / "by-variable" / "models") in run("versions")[1]
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path / "by-flag" / "models") in run("versions", "--artifacts-dir", "./by-flag")[1]


def test_every_argument_for_a_path_is_made_absolute() -> None:
    """The commands run in the checkout, so a relative path would name another file there."""
    paths = {"D", "DIR", "FILE", "FILE.html", "OUT", "IMAGES"}
    other = {"V", "W", "N", "X", "R", "S", "NAME", "TEXT", "COLUMN", "DATASET", "SIZE", "URI", "NAME=X,.."}
    for command in COMMANDS.values():
        for argument in (argument for group in command.arguments for argument in group):
            metavar = argument.settings.get("metavar")
            assert metavar is None or metavar in paths | other, metavar
            assert (argument.settings.get("type") is path_argument) == (metavar in paths), argument.names


def test_alias_names_a_version_everywhere(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.registry.champion.verify", StoredVersion.check)
    for _ in range(2):
        add_stored(store)
    with temporary_settings({PREFECT_API_URL: None}):
        status, out, err = run("alias", "2", "staging", "--reason", "a test")
        assert (status, out, err) == (0, "staging: none -> version 2\n", "")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        status, out, err = run("alias", "1", "staging", "--reason", "a test", "--json")
    moved = json.loads(out)
    assert (status, moved["from"], moved["to"], moved["event_sent"]) == (0, 2, 1, False)
    assert err.startswith("The event is not sent yet. The next run sends it. The API at http://127.0.0.1:9/api")
    assert [row["aliases"] for row in json.loads(run("versions", "--json")[1])] == [["staging"], []]
    assert json.loads(run("show", "staging", "--json")[1])["version"] == 1
    assert "staging" in run("versions")[1]
    assert run("alias", "1", "v7", "--reason", "a test")[0] == 2


def test_verify_exits_with_5_on_a_cut_alias_log(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.registry.verify.verify", lambda version: 0.0)
    log = ModelStore(store).aliases
    for _ in range(2):
        add_stored(store)
    log.append(event(1))
    log.append(event(2, 1))
    assert run("verify", "--all")[0] == 0
    log.path.write_bytes(log.path.read_bytes().splitlines(keepends=True)[0])
    status, out, err = run("verify", "--all")
    assert (status, len(out.splitlines())) == (5, 2)
    assert "has 1 lines: expected the first 2" in err


@field_fault(
    "failure without a message",
    "The folder of a version with an alias is lost",
    "`verify --all` ends with 5 and names alias and version; an empty store is reported",
)
def test_verify_all_names_lost_versions(run: Run, store: Path) -> None:
    assert run("verify", "--all")[:2] == (0, runnable(f"No version in {store} yet. `fashion-ann train` creates one.\n"))
    store.mkdir(parents=True)
    ModelStore(store).aliases.append(event(1, alias="staging"))
    status, _, err = run("verify", "--all")
    assert (status, "lacks versions: staging names version 1." in err) == (5, True)


def test_waiting_version_is_listed(run: Run, store: Path) -> None:
    add_stored(store, verdict={**verdict(None), "outcome": "waiting"})
    assert run("versions")[1].endswith("  waiting\n")
    ModelStore(store).aliases.append(event(1))
    assert run("versions")[1].endswith("  waiting  champion\n")


def test_gc_exits_with_5_on_a_damaged_alias_log(run: Run, store: Path) -> None:
    add_stored(store)
    (store / "aliases.jsonl").write_text("not JSON\n")
    status, out, err = run("gc")
    assert (status, out) == (5, "")
    assert "aliases.jsonl line 1" in err


def test_child_processes_find_our_packages_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}/elsewhere")  # the empty folder is the working directory
    assert run("contract")[0] == 0
    assert os.environ["PYTHONPATH"] == f"{PROJECT_ROOT}{os.pathsep}/elsewhere"


def test_versions_imports_no_slow_library(store: Path) -> None:
    program = (
        "import sys; from cli.main import main\n"
        "try: main(['versions'])\n"
        "except SystemExit: pass\n"
        "slow = {'prefect', 'tensorflow', 'keras', 'great_expectations', 'pandas', 'pyarrow'}\n"
        "print(sorted(slow & set(sys.modules)))"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout.endswith("[]\n")


@pytest.mark.parametrize(("dataset", "text"), [("fashion-mnist", "9 Ankle boot"), ("digits", "integers 0..16")])
def test_prints_the_contract_as_in_docs(run: Run, dataset: str, text: str) -> None:
    status, out, _ = run("contract", "--dataset", dataset)
    assert status == 0
    assert text in out
    assert out.strip() in PAGE.read_text(encoding="utf-8")
    facts = json.loads(run("contract", "--dataset", dataset, "--json")[1])
    assert (facts["name"], len(facts["columns"])) == (dataset, 1 + facts["height"] * facts["width"])
    assert facts["files"] == {split: f"{dataset}_{split}.csv" for split in ("train", "test")}
    assert facts["label_range"] == [0, 9]
    assert {"name", "says", "found", "warn", "fail", "low_is_bad"} == set(facts["checks"][0])


@pytest.mark.parametrize(
    ("command", "shown"), [("versions", "older layout"), ("verify", ""), ("why champion", ""), ("verify --all", "")]
)
def test_an_older_layout_exits_with_5_and_is_not_called_damaged(
    run: Run, store: Path, command: str, shown: str
) -> None:
    make_older(add_promoted(store))
    status, out, err = run(*command.split())
    assert status == 5
    assert "Version 1 has an older layout of the store (1, expected 2)" in err
    assert shown in out
    assert "damaged" not in out + err
