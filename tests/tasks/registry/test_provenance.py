"""The code revision of a manifest, read from real repositories and as an image has it."""

import logging
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.registry.provenance import code_revision
from tests.field_faults import field_fault


def _git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "safe.directory=*")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _repository(folder: Path, message: str = "first") -> str:
    """Create a repository with one commit and return the commit."""
    folder.mkdir()
    _git(folder, "init", "--quiet")
    (folder / "file").write_text(message)
    _git(folder, "add", "file")
    _git(folder, "commit", "--quiet", "--message", message)
    return _git(folder, "rev-parse", "HEAD")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_") or name == "FASHION_ANN_REVISION"]:
        monkeypatch.delenv(name)


def _of_another_owner(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    for path in (checkout, checkout / ".git"):
        os.chown(path, 12345, 12345)
    with pytest.raises(subprocess.CalledProcessError):  # git refuses it
        subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, check=True)


def _called_by_a_hook(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = checkout.with_name("other")
    _repository(other, "other")
    for name, value in {"GIT_DIR": ".git", "GIT_WORK_TREE": "", "GIT_INDEX_FILE": ".git/index"}.items():
        monkeypatch.setenv(name, str(other / value))


@pytest.mark.parametrize(
    "arrange",
    [
        pytest.param(lambda checkout, monkeypatch: None, id="plain"),
        pytest.param(
            _of_another_owner,
            marks=field_fault(
                "stray files and bad values", "git distrusts the owner of the checkout", "The code revision is recorded"
            ),
            id="another owner",
        ),
        pytest.param(
            _called_by_a_hook,
            marks=field_fault(
                "stray files and bad values",
                "GIT_DIR and GIT_INDEX_FILE name the repository of a caller, such as a hook",
                "The revision recorded is that of the checkout, not of the caller's repository",
            ),
            id="caller's variables",
        ),
    ],
)
def test_the_revision_is_that_of_the_checkout(
    arrange: Callable[[Path, pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "checkout"
    head = _repository(checkout)
    arrange(checkout, monkeypatch)
    assert code_revision(checkout) == {"revision": head, "dirty": False}
    (checkout / "file").write_text("edited")
    assert code_revision(checkout) == {"revision": head, "dirty": True}


def test_a_linked_worktree_has_its_own_revision(tmp_path: Path) -> None:
    _repository(tmp_path / "main")
    _git(tmp_path / "main", "worktree", "add", "--quiet", str(tmp_path / "linked"))
    (tmp_path / "linked" / "file").write_text("second")
    _git(tmp_path / "linked", "commit", "--quiet", "--all", "--message", "second")
    head = _git(tmp_path / "linked", "rev-parse", "HEAD")
    assert code_revision(tmp_path / "linked") == {"revision": head, "dirty": False}


@pytest.mark.parametrize(
    "without_git",
    [
        pytest.param(False, id="inside another repository"),
        pytest.param(True, id="git not installed"),
    ],
)
@field_fault(
    "stray files and bad values",
    "The code is no checkout, lies in another repository, or git is not installed",
    "FASHION_ANN_REVISION is recorded; without it nothing is, and one warning names how to supply it",
)
def test_an_unknown_revision_is_supplied_or_warned_about(
    without_git: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _repository(tmp_path / "around")
    folder = tmp_path / "around" / "unpacked"
    folder.mkdir()
    if without_git:
        monkeypatch.setenv("PATH", str(tmp_path))
    assert code_revision(folder) == {"revision": None, "dirty": None}
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    for part in ("FASHION_ANN_REVISION", "--build-arg REVISION", "git"):
        assert part in warning.getMessage()
    monkeypatch.setenv("FASHION_ANN_REVISION", "abc123")
    assert code_revision(folder) == {"revision": "abc123", "dirty": None}
    assert len(caplog.records) == 1
