"""Write, read and remove the prefect.toml of the checkout, with which Prefect's commands find the server of `up`."""

import json
import tomllib
from contextlib import suppress
from pathlib import Path

from tasks.runtime.files import SECRET_FILE, atomic_write

_HEADER = "# Written by `fashion-ann up`, removed by `fashion-ann down`: for Prefect's commands in this folder.\n"


def settings_of_up(path: Path) -> dict[str, str]:
    """Return ``url`` and ``auth_string`` of a prefect.toml that `up` wrote, nothing of one that others wrote."""
    with suppress(FileNotFoundError, PermissionError, tomllib.TOMLDecodeError):
        if (text := path.read_text(encoding="utf-8")).startswith(_HEADER):
            return dict(tomllib.loads(text).get("api", {}))
    return {}


def write_prefect_toml(path: Path, url: str, password: str | None = None) -> None:
    """Write prefect.toml, which only its owner may read, unless the user wrote that file."""
    if not path.exists() or settings_of_up(path):
        auth = "" if password is None else f"auth_string = {json.dumps(password, ensure_ascii=False)}\n"
        with atomic_write(path, mode=SECRET_FILE) as temporary:
            temporary.write_text(f"{_HEADER}[api]\nurl = {json.dumps(url)}\n{auth}", encoding="utf-8")


def remove_prefect_toml(path: Path, urls: set[str]) -> None:
    """Remove prefect.toml if it names one of the stopped servers."""
    if settings_of_up(path).get("url") in urls:
        path.unlink()
