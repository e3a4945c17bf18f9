"""The sqlite transactions of Prefect's server, with the broker that pyproject.toml names."""

import asyncio
import importlib
from pathlib import Path

import sqlalchemy as sa
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.utilities.messaging import BrokerModule
from prefect.settings import PREFECT_MESSAGING_BROKER


async def _increment_twice_at_once(path: Path) -> int:
    database = AioSqliteConfiguration(f"sqlite+aiosqlite:///{path}")
    engine = await database.engine()

    async def increment() -> None:
        async with await database.session(engine) as session, database.begin_transaction(session):
            count = (await session.execute(sa.text("SELECT count FROM bucket"))).scalar_one()
            await asyncio.sleep(0.05)  # the other one reads now, if it may
            await session.execute(sa.text("UPDATE bucket SET count = :count"), {"count": count + 1})

    async with await database.session(engine) as session, database.begin_transaction(session):
        await session.execute(sa.text("CREATE TABLE bucket (count INTEGER)"))
        await session.execute(sa.text("INSERT INTO bucket VALUES (0)"))
    await asyncio.gather(increment(), increment())
    async with await database.session(engine) as session:
        count = (await session.execute(sa.text("SELECT count FROM bucket"))).scalar_one()
    await engine.dispose()
    return int(count)


def test_transactions_that_read_first_take_turns(tmp_path: Path) -> None:
    assert isinstance(importlib.import_module(PREFECT_MESSAGING_BROKER.value()), BrokerModule)
    assert asyncio.run(_increment_twice_at_once(tmp_path / "prefect.db")) == 2


async def _read_in_a_second_transaction(path: Path) -> int:
    database = AioSqliteConfiguration(f"sqlite+aiosqlite:///{path}")
    engine = await database.engine()
    async with await database.session(engine) as session, database.begin_transaction(session):
        await session.execute(sa.text("CREATE TABLE bucket (count INTEGER)"))
    for _ in range(2):
        async with await database.session(engine) as outer, database.begin_transaction(outer):
            await outer.execute(sa.text("INSERT INTO bucket VALUES (0)"))
            async with await database.session(engine) as inner, database.begin_transaction(inner):
                count = (await inner.execute(sa.text("SELECT COUNT(*) FROM bucket"))).scalar_one()
    await engine.dispose()
    return int(count)


def test_a_transaction_within_another_does_not_wait_for_it(tmp_path: Path) -> None:
    assert asyncio.run(asyncio.wait_for(_read_in_a_second_transaction(tmp_path / "prefect.db"), 30)) == 1
