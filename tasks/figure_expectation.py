"""An expectation of our own: one figure about all images of a split lies within its bounds.

Great Expectations has one a column, which looks at each value: about a figure, of which there is one, that costs ten
times as much. To import this module is to import Great Expectations.
"""

from typing import Any, ClassVar

from great_expectations.compatibility import pydantic
from great_expectations.execution_engine import ExecutionEngine, PandasExecutionEngine
from great_expectations.expectations.expectation import BatchExpectation
from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
from great_expectations.expectations.metrics.metric_provider import metric_value
from great_expectations.expectations.metrics.table_metric_provider import TableMetricProvider

_METRIC = "table.figures"


class Figures(TableMetricProvider):
    """What the first row holds, by column: figures stand in every row alike."""

    metric_name = _METRIC

    @metric_value(engine=PandasExecutionEngine)
    def _pandas(cls, execution_engine: PandasExecutionEngine, **_: Any) -> dict[str, Any]:  # noqa: N805  # made a class method
        row: dict[str, Any] = execution_engine.dataframe.iloc[0].to_dict()
        return row


class ExpectFigureToBeBetween(BatchExpectation):
    """The figure, a column of one value, is at least ``min_value`` and at most ``max_value``, where these are given."""

    figure: str
    min_value: float | None = None
    max_value: float | None = None

    metric_dependencies: ClassVar[tuple[str, ...]] = (_METRIC,)
    success_keys: ClassVar[tuple[str, ...]] = ("figure", "min_value", "max_value")

    _built: ExpectationConfiguration | None = pydantic.PrivateAttr(None)

    @property
    def configuration(self) -> ExpectationConfiguration:
        """Built once: Great Expectations asks for it 40 times a validation, and never changes what it has asked."""
        if self._built is None:
            self._built = super().configuration
        return self._built

    def _validate(
        self,
        metrics: dict[str, Any],
        runtime_configuration: dict[str, Any] | None = None,
        execution_engine: ExecutionEngine | None = None,
    ) -> dict[str, Any]:
        value = metrics[_METRIC][self.figure]
        enough = self.min_value is None or value >= self.min_value
        return {
            "success": bool(enough and (self.max_value is None or value <= self.max_value)),
            "result": {"observed_value": value},
        }
