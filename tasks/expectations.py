"""Great Expectations, set up: what judges the data, and draws the pages about it."""

import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from great_expectations.data_context import EphemeralDataContext


def fresh_context() -> "EphemeralDataContext":
    """For one split, each of whose frames gets a datasource of its own.

    Two validators on one pandas datasource can judge the wrong batch (great_expectations issue 12209).
    """
    import_great_expectations()
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
    import great_expectations.expectations  # noqa: F401
