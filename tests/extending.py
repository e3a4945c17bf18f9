"""Follow a section of docs/extending.md in a copy of the checkout."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from schemas.config import PROJECT_ROOT

PAGE = PROJECT_ROOT / "docs" / "extending.md"
_PARTS = (
    *("cli", "flows", "schemas", "tasks", "tests", "docs", "benchmarks", "requirements", "deploy"),
    *("fashion_ann.py", "prefect.yaml", "pyproject.toml", "README.md", "Makefile", "Dockerfile", "compose.yaml"),
    *(".dockerignore", ".gitignore", ".ci", "artifacts/README.md"),
)


def copy_checkout(folder: Path) -> Path:
    """Copy the files of the checkout, and link its environment."""
    for part in _PARTS:
        source, target = PROJECT_ROOT / part, folder / part
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "found-*"))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    (folder / ".venv").symlink_to(PROJECT_ROOT / ".venv")
    return folder


def section(title: str) -> str:
    """Return the text below a heading, up to the next heading."""
    (text,) = re.findall(rf"^##+ {re.escape(title)}\n(.*?)(?=^##+ |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return str(text)


def apply(title: str, checkout: Path) -> None:
    """Write the files of a section, and edit those that it changes."""
    steps = re.split(r"(?=^\*\*\d+\. )", section(title), flags=re.MULTILINE)[1:]
    for step in steps:
        block = re.search(r"^```(python|diff)\n(.*?)^```", step, re.MULTILINE | re.DOTALL)
        if block is None:
            continue
        path = checkout / re.findall(r"`([\w./-]+\.\w+)`", step[: block.start()])[0]
        if block[1] == "python":
            assert not path.exists(), f"{path} is a new file"
            path.write_text(block[2])
        else:
            path.write_text(_edited(path.read_text(), block[2], path))


def _edited(text: str, diff: str, path: Path) -> str:
    for place in diff.split("@@\n"):
        lines = place.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] != "+")
        after = "".join(line[1:] for line in lines if line[0] != "-")
        assert text.count(before) == 1, f"{path}: expected once, found {text.count(before)} times:\n{before}"
        text = text.replace(before, after)
    return text


def run_commands(title: str, checkout: Path, **variables: str) -> None:
    """Run the commands of a section in the copy, each of which must succeed."""
    blocks = re.findall(r"^```sh\n(.*?)^```", section(title), re.MULTILINE | re.DOTALL)
    assert blocks
    for line in "".join(blocks).splitlines():
        run(checkout, "sh", "-c", line, **variables)


def run(checkout: Path, *command: str, **variables: str) -> str:
    """Return what a command prints in the copy."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHONPATH"))}
    done = subprocess.run(
        command, cwd=checkout, env={**environment, **variables}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr
