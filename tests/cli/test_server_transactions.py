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
