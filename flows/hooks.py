"""What happens when a flow begins to run, wherever that is."""

import logging

from prefect import Flow, State
from prefect.client.schemas.objects import FlowRun


def let_stages_speak(flow: Flow[..., object], flow_run: FlowRun, state: State) -> None:
    """What our stages say at INFO goes into the run's log; other libraries stay at Prefect's level, WARNING.

    Prefect has a setting for the level of all loggers alone, and each request to its API is said at INFO, too.
    """
    logging.getLogger("tasks").setLevel(logging.INFO)
