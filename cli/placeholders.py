"""Reject placeholders in place of passwords, such as those of fashion-ann.env.example.

Units and containers run `python -m cli.placeholders [REQUIRED ..]` before Prefect starts. REQUIRED are variables that
must be set.
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from urllib.parse import unquote, urlsplit

from schemas.errors import FashionAnnError, WrongUsage

# Those of the example and of the commands in the docs. Compared without case and these characters, as in "<Change me>".
_PLACEHOLDERS = {"", "changeme", "password"}
_IGNORED = re.compile(r"[\s._'\"<>-]")
AUTH_STRINGS = ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING")
DATABASE_URLS = ("PREFECT_API_DATABASE_CONNECTION_URL", "PREFECT_SERVER_DATABASE_CONNECTION_URL")
_PASSWORD = "POSTGRES_PASSWORD"  # noqa: S105  # a name


def require_chosen(variables: Mapping[str, str], required: Sequence[str] = ()) -> None:
    """Raise `WrongUsage` for a required variable that is not set, and for a placeholder in any variable."""
    for name in required:
        if name not in variables:
            raise WrongUsage(f"{name} was expected, and is not set. Set it to a value of your own, then start again.")
    for name in (*AUTH_STRINGS, *DATABASE_URLS, _PASSWORD):
        password = _password(name, variables[name]) if name in variables else None
        if password is not None and _IGNORED.sub("", password).lower() in _PLACEHOLDERS:
            raise WrongUsage(
                f"{name} was expected with a password, received a placeholder or none. Set one of your own, then start "
                "again."
            )


def _password(name: str, value: str) -> str | None:
    """Return the password in a value, None if it has none: an sqlite database, or Postgres without a password."""
    if name in AUTH_STRINGS:
        return value.partition(":")[2]
    if name not in DATABASE_URLS:
        return value
    try:
        password = urlsplit(value).password
    except ValueError:  # not a URL; Prefect reports it
        return None
    return password and unquote(password)


def main() -> None:
    try:
        require_chosen(os.environ, sys.argv[1:])
    except FashionAnnError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
