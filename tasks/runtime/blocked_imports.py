"""Make imports of packages fail, for libraries that import whatever is installed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def blocked_imports(*packages: str) -> Iterator[None]:
    """Make the import of ``packages`` fail while the block runs. Packages that are imported already are unaffected."""
    absent = [package for package in packages if package not in sys.modules]
    for package in absent:
        sys.modules[package] = None  # type: ignore[assignment]  # None makes an import fail
    try:
        yield
    finally:
        for package in absent:
            del sys.modules[package]
