"""Great Expectations, set up: what judges the data, and draws the pages about it."""

import importlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from great_expectations.data_context import EphemeralDataContext
    from great_expectations.expectations import Expectation
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration


def fresh_context() -> "EphemeralDataContext":
    """For one split, each of whose frames gets a datasource of its own.

    Two validators on one pandas datasource can judge the wrong batch (great_expectations issue 12209).
    """
    figure_expectation()  # by which the context knows it: pages are made of stored verdicts, too
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    # It tells of each temporary folder that it makes and removes.
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    return context


def import_great_expectations() -> None:
    """Import it, for seconds the first time; a caller that waits for something else may do so ahead of the stage."""
    # Before the import: it is read then. Nothing about the data leaves the machine.
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    # What it needs for one expectation on distributions, and for its chart, is a third of the import, and 60 MB.
    with _imported_with_first_use("scipy.stats", "altair"):
        import great_expectations.expectations  # noqa: F401


@contextmanager
def _imported_with_first_use(*names: str) -> Iterator[None]:
    """Who imports these modules in the block gets one that imports the real one when it is asked for something (PEP
    562). Whoever else imports them, then or later, gets the real ones.

    `importlib.util.LazyLoader` is made for this; before Python 3.12 the import statement itself is such a question.
    """
    stands_in = {name: _stand_in(name) for name in names if name not in sys.modules}
    sys.modules.update(stands_in)
    try:
        yield
    finally:
        for name, module in stands_in.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _stand_in(name: str) -> ModuleType:
    module = ModuleType(name)

    def first_use(attribute: str) -> Any:
        if attribute.startswith("__"):  # asked of every module that there is, as `inspect.getmodule` does
            raise AttributeError(attribute)
        if sys.modules.get(name) is module:
            sys.modules.pop(name, None)
        return getattr(importlib.import_module(name), attribute)

    module.__getattr__ = first_use  # type: ignore[method-assign]
    return module


@cache
def figure_expectation() -> "type[Expectation]":
    """``ExpectFigureToBeBetween(figure, min_value, max_value)``, an expectation of our own.

    One figure about all images of a split, a column of one value, is at least ``min_value`` and at most ``max_value``,
    where these are given. Great Expectations has one that looks at each value of a column: that costs four times as
    much. Made in a function because to make it is to import Great Expectations.
    """
    import_great_expectations()
    from great_expectations.compatibility import pydantic
    from great_expectations.execution_engine import PandasExecutionEngine
    from great_expectations.expectations.expectation import BatchExpectation
    from great_expectations.expectations.metrics.metric_provider import metric_value
    from great_expectations.expectations.metrics.table_metric_provider import TableMetricProvider

    class Figures(TableMetricProvider):  # type: ignore[misc]
        """What the first row holds, by column: figures stand in every row alike."""

        metric_name = "table.figures"

        @metric_value(engine=PandasExecutionEngine)  # type: ignore[untyped-decorator]
        def _pandas(cls, execution_engine: Any, **_: Any) -> dict[str, Any]:  # noqa: N805  # made a class method
            row: dict[str, Any] = execution_engine.dataframe.iloc[0].to_dict()
            return row

    class ExpectFigureToBeBetween(BatchExpectation):  # type: ignore[misc]
        figure: str
        min_value: float | None = None
        max_value: float | None = None

        metric_dependencies: ClassVar[tuple[str, ...]] = (Figures.metric_name,)
        success_keys: ClassVar[tuple[str, ...]] = ("figure", "min_value", "max_value")

        _built: Any = pydantic.PrivateAttr(None)

        @property
        def configuration(self) -> "ExpectationConfiguration":
            """Built once: Great Expectations asks for it 40 times a validation, and never changes what it has asked."""
            if self._built is None:
                self._built = super().configuration
            return self._built

        def _validate(self, metrics: dict[str, Any], **_: Any) -> dict[str, Any]:
            value = metrics[Figures.metric_name][self.figure]
            enough = self.min_value is None or value >= self.min_value
            return {
                "success": bool(enough and (self.max_value is None or value <= self.max_value)),
                "result": {"observed_value": value},
            }

    return ExpectFigureToBeBetween
