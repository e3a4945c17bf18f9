"""`sign`, and the commands that accept only signed versions, in this process."""

import json
import shutil
from pathlib import Path

import pytest

from cli.doctor import check_store, run_check
from tasks.registry.signatures import fingerprint, signing_key, verify_key
from tasks.registry.store import ModelStore
from tests.cli.conftest import Run
from tests.keys import write_keys
from tests.sample import SAMPLE
from tests.stored import add_promoted, add_stored

IMAGES = str(SAMPLE / "fashion-mnist_test.csv.gz")


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a private key. Its public key is trusted."""
    private, public = write_keys(tmp_path)
    monkeypatch.setenv("FASHION_ANN_VERIFY_KEY", str(public))
    return private


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    """Return a store of three unsigned versions without models. 1 and then 2 became champion."""
    monkeypatch.setenv("FASHION_ANN_ARTIFACTS_DIR", str(tmp_path / "artifacts"))
    store = ModelStore.of(tmp_path / "artifacts", "fashion-mnist")
    for add in (add_promoted, add_promoted, add_stored):
        add(store.root)
    return store


def trusted() -> str:
    key = verify_key()
    assert key is not None
    return fingerprint(key)


@pytest.mark.parametrize(
    ("command", "number"),
    [
        (["predict", IMAGES, "--output", "OUT"], 2),
        (["predict", IMAGES, "--output", "OUT", "--version", "3"], 3),
        (["verify"], 2),
        (["verify", "3", "--json"], 3),
        (["verify", "--all"], 1),
        (["promote", "3", "--reason", "R"], 3),
        (["promote", "3", "--reason", "R", "--force"], 3),
        (["rollback", "--reason", "R"], 1),
        (["alias", "3", "staging", "--reason", "R"], 3),
        (["reproduce", "3"], 3),
    ],
    ids=["predict", "predict 3", "verify", "verify 3", "all", "promote", "force", "rollback", "alias", "reproduce"],
)
def test_an_unsigned_version_exits_with_5(
    run: Run, private: Path, store: ModelStore, tmp_path: Path, command: list[str], number: int
) -> None:
    log = store.aliases.path.read_bytes()
    status, _, err = run(*(str(tmp_path / "out.csv") if word == "OUT" else word for word in command))
    assert status == 5
    for part in (f"Version {number} is not accepted", str(store.folder(number) / "manifest.json.sig"), trusted()):
        assert part in err
    assert store.aliases.path.read_bytes() == log
    assert not (tmp_path / "out.csv").exists()


def test_a_signed_version_is_used(
    run: Run, private: Path, two_versions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = shutil.copytree(two_versions, tmp_path / "artifacts")
    monkeypatch.setenv("FASHION_ANN_ARTIFACTS_DIR", str(artifacts))
    status, out, err = run("sign", "champion", "--key", private)
    assert (status, out, err) == (0, f"version 1: signed with the key {trusted()}\n", "")
    assert run("predict", IMAGES, "--output", tmp_path / "out.csv")[0] == 0


def test_sign_prints_json(run: Run, private: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASHION_ANN_SIGNING_KEY", str(private))
    status, out, _ = run("sign", "v3", "--json")
    assert status == 0
    version = store.version(3)
    assert json.loads(out) == {
        "version": 3,
        "manifest_sha256": version.manifest.manifest_sha256,
        "signature": str(version.folder / "manifest.json.sig"),
        "signed_by": trusted(),
    }
    assert version.accept() == trusted()


def test_sign_without_a_key_exits_with_2(run: Run, store: ModelStore, tmp_path: Path) -> None:
    for arguments, message in (([], "give --key FILE"), (["--key", tmp_path / "no.pem"], "no.pem cannot be read")):
        status, out, err = run("sign", "3", *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert message in err


@pytest.mark.parametrize("command", ["predict", "verify", "promote", "show"])
def test_a_wrong_trusted_key_accepts_nothing(
    run: Run, store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("FASHION_ANN_VERIFY_KEY", "")
    arguments = {
        "predict": [IMAGES, "--output", tmp_path / "out.csv"],
        "promote": ["3", "--reason", "R"],
        "show": ["3"],
    }
    status, out, err = run(command, *arguments.get(command, []))
    assert (status, out) == (2, "")
    assert "FASHION_ANN_VERIFY_KEY: expected a PEM file" in err


def test_doctor_reports_a_champion_that_is_not_accepted(private: Path, store: ModelStore) -> None:
    artifacts = store.root.parent.parent
    check = run_check("store", lambda: check_store(artifacts))
    assert check.ok is False
    assert check.says.startswith("Version 2 is not accepted")
    key = signing_key(str(private))
    assert key is not None
    store.sign(2, key)
    assert check_store(artifacts).startswith("3 versions, all intact, champion 2")


def test_show_describes_also_what_is_not_accepted(
    run: Run, private: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ("signed", "signed_by", "not_accepted")
    shown = json.loads(run("show", "3", "--json")[1])
    assert [shown[key] for key in keys[:2]] == [False, None]
    assert "Version 3 is not accepted" in shown["not_accepted"]
    run("sign", "3", "--key", private)
    shown = json.loads(run("show", "3", "--json")[1])
    assert [shown[key] for key in keys] == [True, trusted(), None]
    assert "text" not in shown
    monkeypatch.delenv("FASHION_ANN_VERIFY_KEY")
    shown = json.loads(run("show", "3", "--json")[1])
    assert [shown[key] for key in keys] == [True, None, None]
