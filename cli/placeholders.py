"""Reject passwords that nobody chose, such as those of fashion-ann.env.example.

Units and containers run `python -m cli.placeholders [REQUIRED ..]` before Prefect starts. REQUIRED: variables that must
be set.
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from schemas.errors import FashionAnnError, WrongUsage

# In the example, and in the commands of the docs. Compared without dots, hyphens, underscores and case.
_PLACEHOLDERS = {"", "changeme", "password"}
_AUTH_STRINGS = ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING")
_DATABASE_URLS = ("PREFECT_API_DATABASE_CONNECTION_URL", "PREFECT_SERVER_DATABASE_CONNECTION_URL")
_PASSWORD = "POSTGRES_PASSWORD"  # noqa: S105  # a name


def require_chosen(variables: Mapping[str, str], required: Sequence[str] = ()) -> None:
    """Raise `WrongUsage` for a required variable that is not set, and for a placeholder in any variable."""
    for name in required:
        if name not in variables:
            raise WrongUsage(f"{name} is not set: set it to a value of your own, then start again.")
    for name in (*_AUTH_STRINGS, *_DATABASE_URLS, _PASSWORD):
        password = _password(name, variables[name]) if name in variables else None
        if password is not None and re.sub("[._-]", "", password).lower() in _PLACEHOLDERS:
            raise WrongUsage(
                f"{name} has a placeholder or nothing as its password: set one of your own, then start again."
            )


def _password(name: str, value: str) -> str | None:
    """Return the password in a value, None if it has none: an sqlite database, or Postgres without a password."""
    if name in _AUTH_STRINGS:
        return value.partition(":")[2]
    try:
        return urlsplit(value).password if name in _DATABASE_URLS else value
    except ValueError:  # no URL, which Prefect reports
        return None


def main() -> None:
    try:
        require_chosen(os.environ, sys.argv[1:])
    except FashionAnnError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
