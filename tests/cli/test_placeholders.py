"""Passwords that nobody chose do not start anything."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.placeholders import require_chosen
from schemas.config import PROJECT_ROOT
from schemas.errors import WrongUsage

AUTH, CLIENT, DATABASE = (
    "PREFECT_SERVER_API_AUTH_STRING",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_API_DATABASE_CONNECTION_URL",
)
EXAMPLE = (PROJECT_ROOT / "deploy" / "systemd" / "fashion-ann.env.example").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *re.findall(r"^(\w+)=(.*CHANGE-ME.*)$", EXAMPLE, re.MULTILINE),
        (AUTH, "user:password"),
        (AUTH, "admin:changeme"),
        (AUTH, "user:..."),
        (AUTH, "user:"),
        (AUTH, "CHANGE-ME"),
        (CLIENT, ""),
        (DATABASE, "postgresql+asyncpg://prefect:password@127.0.0.1:5432/prefect"),
        ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "postgresql+asyncpg://prefect:Change_Me@db/prefect"),
        ("POSTGRES_PASSWORD", "CHANGE-ME"),
        ("POSTGRES_PASSWORD", ".."),
        ("POSTGRES_PASSWORD", ""),
    ],
)
def test_a_placeholder_is_refused_with_its_variable(name: str, value: str) -> None:
    with pytest.raises(WrongUsage, match=rf"^{name} has a placeholder or nothing as its password: [^.]+\.$"):
        require_chosen({"PREFECT_API_URL": "http://127.0.0.1:4200/api", name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (AUTH, "user:secret"),
        (AUTH, "user:!#%&"),
        (CLIENT, "prefect:a:password"),
        (DATABASE, "sqlite+aiosqlite:////var/lib/prefect.db"),
        (DATABASE, "postgresql+asyncpg://prefect@/prefect?host=/var/run/postgresql"),
        (DATABASE, "postgresql+asyncpg://prefect:p%40ss@[bad/prefect"),
        ("POSTGRES_PASSWORD", "x7Password"),
        ("PREFECT_API_URL", "CHANGE-ME"),
    ],
)
def test_a_chosen_value_is_accepted(name: str, value: str) -> None:
    require_chosen({name: value}, required=[name])


def test_a_required_variable_must_be_set() -> None:
    with pytest.raises(WrongUsage, match=f"^{AUTH} is not set: "):
        require_chosen({CLIENT: "user:secret"}, required=[CLIENT, AUTH])


def test_example_has_a_placeholder_for_every_password() -> None:
    assert set(re.findall(r"^(\w+)=.*CHANGE-ME", EXAMPLE, re.MULTILINE)) == {AUTH, CLIENT, DATABASE}


@pytest.mark.parametrize("module", ["cli.placeholders", "cli.main up"])
def test_a_placeholder_starts_nothing(module: str, tmp_path: Path) -> None:
    (tmp_path / "services").touch()  # without the check nothing could start here either
    variables = {**os.environ, "FASHION_ANN_ARTIFACTS_DIR": str(tmp_path), AUTH: "user:CHANGE-ME"}
    command = [sys.executable, "-m", *module.split()]
    done = subprocess.run(command, cwd=PROJECT_ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{AUTH} has a placeholder or nothing as its password" in done.stderr.splitlines()[-1]
