"""Prepare the environment variables of this process. Servers, workers and flow runs that it starts inherit them."""

import os
import re
from collections.abc import MutableMapping
from urllib.parse import urlsplit

from schemas.config import absolute, as_address, python_path
from schemas.errors import WrongUsage

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
# Variables whose value is one path. Prefect's BASE_PATH is a part of URLs, its SEARCH_PATH names schemas of Postgres.
_PATH = re.compile(
    r"FASHION_ANN_\w+_(DIR|KEY|TEMPLATE)|PREFECT_(\w+_)?(HOME|DIRECTORY|FILE|(?<!BASE_)(?<!SEARCH_)PATH)|SSL_CERT_(DIR|FILE)|TMPDIR"
)
_DATABASE_URL = re.compile(r"PREFECT_(API|SERVER)_DATABASE_CONNECTION_URL")
# One with a relative path. `:memory:` and URIs with `file:` are none.
_SQLITE_FILE = re.compile(r"(sqlite(?:\+\w+)?:///)(?!/|:|file:)([^?]+)")
# A URL with 0.0.0.0 reaches this machine, too.
_LOOPBACK = ("127.0.0.1", "localhost", "::1", "0.0.0.0")  # noqa: S104  # nothing listens here


def prepare_environment(variables: MutableMapping[str, str]) -> list[str]:
    """Make ``variables`` usable for Prefect and httpx in the checkout, and return warnings.

    Call it before either is imported. Raises `WrongUsage` as `absolute_path` does.
    """
    variables["PYTHONPATH"] = python_path()
    variables["PYTHONSAFEPATH"] = "1"  # also for the processes that Prefect starts
    for name in filter(_PATH.fullmatch, list(variables)):
        variables[name] = absolute_path(variables[name])
    for name in filter(_DATABASE_URL.fullmatch, list(variables)):
        variables[name] = _SQLITE_FILE.sub(lambda url: url[1] + absolute_path(url[2]), variables[name])
    # Prefect cannot be imported without a home, not even with PREFECT_HOME. Container engines set the same.
    if os.path.expanduser("~") == "~":  # noqa: PTH111  # Path.home() raises RuntimeError instead
        variables["HOME"] = os.sep
    # Compose passes an unset variable as an empty one. Prefect would use the working directory.
    if not variables.get("PREFECT_HOME", "set"):
        del variables["PREFECT_HOME"]
    return exclude_loopback_from_proxies(variables)


def absolute_path(path: str) -> str:
    """Return the path as `schemas.config.absolute` does.

    An empty path, one with a leading ``~``, and an address of object storage stay as they are.

    Raises `WrongUsage` if the path is relative and the working directory was removed.
    """
    if not path.strip() or path.startswith("~") or as_address(path) is not None:
        return path
    try:
        return str(absolute(path))
    except OSError as error:
        raise WrongUsage(
            f"{path}: expected an absolute path, because the working directory cannot be used ({error.strerror})."
        ) from error


def exclude_loopback_from_proxies(variables: MutableMapping[str, str]) -> list[str]:
    """Add loopback to NO_PROXY, remove proxies that httpx rejects, and return a warning if downloads lose theirs.

    httpx raises an error for such a proxy, for example SOCKS, even if the request is to a host in NO_PROXY.
    """
    proxies = {name: value for name, value in variables.items() if name.lower() in _PROXIES and value}
    if not proxies:
        return []
    rejected = {name: value for name, value in proxies.items() if not _is_http_proxy(value)}
    for name in rejected:
        del variables[name]
    # As in Python's `urllib.request.getproxies`, the lower-case name takes precedence.
    hosts = [host.strip() for host in variables.get("no_proxy", variables.get("NO_PROXY", "")).split(",")]
    hosts = [*filter(None, hosts), *(host for host in _LOOPBACK if host not in hosts)]
    variables["no_proxy"] = variables["NO_PROXY"] = ",".join(hosts)
    if not rejected or any(name.lower() != "http_proxy" for name in proxies.keys() - rejected.keys()):
        return []
    schemes = ", ".join(sorted({value.partition("://")[0] for value in rejected.values() if "://" in value}))
    return [
        f"{' and '.join(rejected)} not used, so downloads connect directly: expected http://HOST:PORT, received "
        + (f"{schemes}://" if schemes else "no valid address")
    ]


def _is_http_proxy(address: str) -> bool:
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port
        return False
