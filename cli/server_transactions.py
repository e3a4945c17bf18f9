"""Provide Prefect's message broker, and make sqlite transactions of the server take the write lock at their start.

pyproject.toml names this module as the broker, because Prefect imports the broker in every server and nowhere else.
Prefect begins most sqlite transactions as DEFERRED. One that reads first and writes later fails at once with "database
is locked" if another transaction has written in between. Triggers of automations do so for each event of a flow run.

The cursor of a failed statement stays in the traceback until Python's garbage collection. That runs in the event loop,
and waits while the same connection waits for the write lock. The owner of the lock needs the event loop to commit. The
server therefore answers no request until sqlite's timeout of 60 s (docs/decisions.md). A transaction that begins as
IMMEDIATE waits for the lock instead of failing.

Some of Prefect's transactions read in a second one before they end, for example when a work queue is paused. The inner
one stays DEFERRED: it would wait for the lock of the outer one, which waits for it.
"""

from contextvars import ContextVar
from typing import Any

from prefect.server.utilities.messaging.memory import Consumer, Publisher, break_topic, ephemeral_subscription
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

__all__ = ["Consumer", "Publisher", "break_topic", "ephemeral_subscription"]


# The connection whose transaction took the write lock last in this task, or in one that started it.
_writer: ContextVar[Connection | None] = ContextVar("writer", default=None)


@event.listens_for(Engine, "before_cursor_execute", retval=True)
def take_write_lock(
    connection: Connection, cursor: object, statement: str, parameters: Any, context: object, executemany: bool
) -> tuple[str, Any]:
    """Return the statement, with the start of an outer deferred transaction replaced by that of an immediate one."""
    if statement in ("BEGIN DEFERRED", "BEGIN IMMEDIATE"):
        outer = _writer.get()
        if outer is None or not outer.in_transaction():
            _writer.set(connection)
            statement = "BEGIN IMMEDIATE"
    return statement, parameters
