"""Set up Great Expectations."""

import importlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from great_expectations.data_context import EphemeralDataContext


# The thread of `import_in_background`.
IMPORTER = "import Great Expectations"


def fresh_context() -> "EphemeralDataContext":
    """Return a new context for the profiles of one split.

    Contexts are not shared: two validators on one pandas datasource can validate the wrong batch (great_expectations
    issue 12209).
    """
    import_great_expectations()
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    # It logs every temporary folder that it creates and removes.
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    return context


def import_in_background() -> None:
    """Import Great Expectations in a thread, for a stage whose output will be validated. The import takes seconds."""

    def import_or_fail_later() -> None:
        with suppress(Exception):  # `fresh_context` imports it again and raises
            import_great_expectations()

    threading.Thread(target=import_or_fail_later, name=IMPORTER, daemon=True).start()


def import_great_expectations() -> None:
    """Import Great Expectations."""
    # Set before the import, which reads it. Nothing about the data leaves the machine.
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    # One expectation on distributions needs them. They are a third of the import time and 60 MB.
    with _lazy_modules("scipy.stats", "altair"):
        import great_expectations.expectations  # noqa: F401


@contextmanager
def _lazy_modules(*names: str) -> Iterator[None]:
    """Install proxies for these modules in the block; a proxy imports the real module on first use (PEP 562).

    Imports outside the block get the real modules. `importlib.util.LazyLoader` does not serve here: before Python 3.12
    the import statement itself counts as a use.
    """
    proxies = {name: _proxy(name) for name in names if name not in sys.modules}
    sys.modules.update(proxies)
    try:
        yield
    finally:
        for name, module in proxies.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _proxy(name: str) -> ModuleType:
    module = ModuleType(name)

    def first_use(attribute: str) -> Any:
        if attribute.startswith("__"):  # `inspect.getmodule`, for one, reads these of every loaded module
            raise AttributeError(attribute)
        if sys.modules.get(name) is module:
            sys.modules.pop(name, None)
        return getattr(importlib.import_module(name), attribute)

    module.__getattr__ = first_use  # type: ignore[method-assign]
    return module
