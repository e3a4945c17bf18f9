"""Prefect's message broker, for a server whose sqlite transactions take the write lock at their start.

pyproject.toml names this module as the broker, because Prefect imports it in every server and nowhere else. Prefect
begins most sqlite transactions as DEFERRED. One that reads first and writes later fails at once with "database is
locked" if another transaction has written in between, as triggers of automations do for each event of a flow run.

The cursor of a failed statement stays in the traceback until Python's garbage collection. That runs in the event loop,
and waits while the same connection waits for the write lock. The owner of the lock needs the event loop to commit, so
the server answers no request until sqlite's timeout of 60 s (docs/decisions.md). A transaction that begins as IMMEDIATE
waits instead.
"""

from typing import Any

from prefect.server.utilities.messaging.memory import Consumer, Publisher, break_topic, ephemeral_subscription
from sqlalchemy import event
from sqlalchemy.engine import Engine

__all__ = ["Consumer", "Publisher", "break_topic", "ephemeral_subscription"]


@event.listens_for(Engine, "before_cursor_execute", retval=True)
def take_write_lock(
    connection: object, cursor: object, statement: str, parameters: Any, context: object, executemany: bool
) -> tuple[str, Any]:
    """Return the statement, with the start of a deferred transaction replaced by that of an immediate one."""
    return ("BEGIN IMMEDIATE" if statement == "BEGIN DEFERRED" else statement), parameters
