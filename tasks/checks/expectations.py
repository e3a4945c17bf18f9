"""Set up Great Expectations."""

import copy
import importlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tasks.runtime.blocked_imports import blocked_imports

if TYPE_CHECKING:
    from great_expectations.data_context import EphemeralDataContext


# The thread of `import_in_background`.
IMPORTER = "import Great Expectations"
_IMPORTING = threading.Lock()


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
    with _IMPORTING:  # the blocks below change and restore global state
        if (name := "great_expectations.expectations") in sys.modules:
            return
        # One expectation on distributions needs the first two. They are a third of the import time and 60 MB.
        with _lazy_modules("scipy.stats", "altair"), blocked_imports("sqlalchemy"), _inherited_fields_shared():
            importlib.import_module(name)


@contextmanager
def _inherited_fields_shared() -> Iterator[None]:
    """Let models of pydantic 1 that are defined in the block share the parts of fields that they inherit.

    pydantic copies these fields with all types and validators inside, 450,000 objects: 0.6 of 1.5 s. It changes a
    field's own attributes, its ``field_info`` and its ``class_validators`` only, so only these are copied.
    """
    from pydantic.v1.fields import ModelField

    def copied(field: ModelField, memo: object) -> ModelField:
        own = copy.copy(field)
        own.field_info, own.class_validators = copy.copy(field.field_info), dict(field.class_validators)
        return own

    ModelField.__deepcopy__ = copied  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del ModelField.__deepcopy__  # type: ignore[attr-defined]


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
