"""Great Expectations, set up: what judges the data, and draws the pages about it."""

import importlib
import logging
import math
import operator
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.data_context import EphemeralDataContext
    from great_expectations.expectations import Expectation

_RELATIONS = {"==": operator.eq, ">=": operator.ge, "<=": operator.le}
_SHOWN = 20


def fresh_context() -> "EphemeralDataContext":
    """For one split, each of whose frames gets a datasource of its own.

    Two validators on one pandas datasource can judge the wrong batch (great_expectations issue 12209).
    """
    own_expectations()  # by which the context knows it: pages are made of stored verdicts, too
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


class Own(NamedTuple):
    """Expectations of our own, about a profile of a split. Each looks at the frame whole: those of Great Expectations
    look at each value of a column, which costs four times as much, and know no columns but those of the frame.

    figure: ``ExpectFigureToBeBetween(figure, min_value, max_value)``: a figure about all images of a split, a column of
    one value, is at least ``min_value`` and at most ``max_value``, where these are given.
    columns: ``ExpectEveryColumnToBe(found, relation, owed)``: of every column of a split, a row of the frame, what was
    found is ``"=="``, ``">="`` or ``"<="`` what is owed, where both are there: what is not is None or NaN. Values are
    Python's own, or columns of numbers or text.
    summary: ``ExpectSummaryToBeBetween(column, summary, min_value, max_value)``: the ``"largest"`` value of a column of
    the frame, where there is one, or the ``"sum"`` of all is between the two, where these are given.
    values: ``ExpectValuesToBe(column, value_set)``: the values of a column of the frame, text, are those of the set,
    all of them and no others.
    """

    figure: "type[Expectation]"
    columns: "type[Expectation]"
    summary: "type[Expectation]"
    values: "type[Expectation]"


@cache
def own_expectations() -> Own:
    """Made in a function because to make them is to import Great Expectations."""
    import_great_expectations()
    from great_expectations.execution_engine import PandasExecutionEngine
    from great_expectations.expectations.expectation import BatchExpectation
    from great_expectations.expectations.metrics.metric_provider import metric_value
    from great_expectations.expectations.metrics.table_metric_provider import TableMetricProvider
    from great_expectations.validator.metric_configuration import MetricConfiguration
    from great_expectations.validator.validator import ValidationDependencies

    class Frame(TableMetricProvider):  # type: ignore[misc]
        metric_name = "table.frame"

        @metric_value(engine=PandasExecutionEngine)  # type: ignore[untyped-decorator]
        def _pandas(cls, execution_engine: Any, **_: Any) -> "pd.DataFrame":  # noqa: N805  # made a class method
            frame: pd.DataFrame = execution_engine.dataframe
            return frame

    class OfFrame(BatchExpectation):  # type: ignore[misc]
        def get_validation_dependencies(self, *_: Any, **__: Any) -> "ValidationDependencies":
            """The frame, whatever is expected of it. The method of the class above comes to the same by way of all that
            an expectation may be told, in as much time as all the rest of a validation takes."""
            frame = MetricConfiguration(Frame.metric_name, {"batch_id": self.batch_id}, {})
            return ValidationDependencies({Frame.metric_name: frame}, {"result_format": "BASIC"})

    class ExpectFigureToBeBetween(OfFrame):
        figure: str
        min_value: float | None = None
        max_value: float | None = None

        success_keys: ClassVar[tuple[str, ...]] = ("figure", "min_value", "max_value")

        def _validate(self, metrics: dict[str, Any], **_: Any) -> dict[str, Any]:
            value = metrics[Frame.metric_name][self.figure].iloc[0].item()  # in every row the same
            return {
                "success": _within(value, self.min_value, self.max_value),
                "result": {"observed_value": value},
            }

    class ExpectSummaryToBeBetween(OfFrame):
        column: str
        summary: Literal["largest", "sum"]
        min_value: float | None = None
        max_value: float | None = None

        success_keys: ClassVar[tuple[str, ...]] = ("column", "summary", "min_value", "max_value")

        def _validate(self, metrics: dict[str, Any], **_: Any) -> dict[str, Any]:
            values = metrics[Frame.metric_name][self.column].tolist()
            value = sum(values) if self.summary == "sum" else max(values, default=None)
            return {
                "success": value is None or _within(value, self.min_value, self.max_value),
                "result": {"observed_value": value},
            }

    class ExpectValuesToBe(OfFrame):
        column: str
        value_set: list[str]

        success_keys: ClassVar[tuple[str, ...]] = ("column", "value_set")

        def _validate(self, metrics: dict[str, Any], **_: Any) -> dict[str, Any]:
            found, owed = set(metrics[Frame.metric_name][self.column]), set(self.value_set)
            return {
                "success": found == owed,
                "result": {
                    "observed_value": _listed(found),
                    "missing": _listed(owed - found),
                    "unexpected": _listed(found - owed),
                },
            }

    class ExpectEveryColumnToBe(OfFrame):
        found: str
        relation: Literal["==", ">=", "<="]
        owed: str

        success_keys: ClassVar[tuple[str, ...]] = ("found", "relation", "owed")

        def _validate(self, metrics: dict[str, Any], **_: Any) -> dict[str, Any]:
            frame = metrics[Frame.metric_name]
            # Not by pandas, whose every step costs more than what it does to so few values.
            columns = (frame[name].tolist() for name in ("column", self.found, self.owed))
            broken = [
                {"column": column, self.found: _as_json(found), self.owed: _as_json(owed)}
                for column, found, owed in zip(*columns, strict=True)
                if _there(found) and _there(owed) and not _RELATIONS[self.relation](found, owed)
            ]
            return {
                "success": not broken,
                "result": {
                    "element_count": len(frame),
                    "unexpected_count": len(broken),
                    "unexpected_percent": 100 * len(broken) / len(frame),
                    # What its pages show.
                    "partial_unexpected_list": [[*row.values()] for row in broken[:_SHOWN]],
                    "unexpected_index_list": broken,
                },
            }

    return Own(ExpectFigureToBeBetween, ExpectEveryColumnToBe, ExpectSummaryToBeBetween, ExpectValuesToBe)


def _listed(values: set[str]) -> str:
    """Whole numbers by their size. A column of something else, such as ids, may have as many as there are rows."""
    ordered = sorted(values, key=lambda value: (len(value), value))
    return join_first(ordered, _SHOWN)


def join_first(values: Sequence[str], shown: int) -> str:
    """As many as are ``shown``, and how many more there are."""
    return ", ".join(values[:shown]) + (f" and {len(values) - shown} more" if len(values) > shown else "")


def _within(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


def _there(value: Any) -> bool:
    """Neither None nor NaN, which is not even itself."""
    return value is not None and value == value


def _as_json(value: Any) -> Any:
    """JSON has no infinite numbers."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
