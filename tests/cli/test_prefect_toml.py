"""The prefect.toml of the checkout, which `up` writes and `down` removes."""

import tomllib
from pathlib import Path

import pytest

from cli.prefect_toml import remove_prefect_toml, write_prefect_toml

URL, OTHER_URL = "http://127.0.0.1:2/api", "http://127.0.0.1:1/api"


def test_prefect_toml_is_replaced_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "prefect.toml"
    write_prefect_toml(path, OTHER_URL)
    write_prefect_toml(path, URL)
    assert tomllib.loads(path.read_text()) == {"api": {"url": URL}}
    remove_prefect_toml(path, {OTHER_URL})
    assert path.exists()
    remove_prefect_toml(path, {URL})
    assert not path.exists()


def test_prefect_toml_with_a_password_is_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "prefect.toml"
    write_prefect_toml(path, URL)
    path.chmod(0o644)
    write_prefect_toml(path, URL, password := 'us"er:pass\\wörd')
    assert tomllib.loads(path.read_text(encoding="utf-8")) == {"api": {"url": URL, "auth_string": password}}
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["[api]\nurl = 'http://elsewhere/api'\n", ""])
def test_prefect_toml_of_the_user_is_kept(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prefect.toml"
    path.write_text(text)
    write_prefect_toml(path, URL)
    remove_prefect_toml(path, {URL})
    assert path.read_text() == text
