import pytest

from schemas.errors import DataContractError
from tasks.model import warm_up as ahead
from tasks.runtime.events import emit
from tests.processes.test_worker_process import WORKER, children
from tests.tasks.model.test_warm_up import ended


def test_what_was_begun_is_ended_once_training_is_reused_and_with_the_block_also_after_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = children()
    monkeypatch.setattr(ahead.fit, "__name__", WORKER)
    with ahead.prestart_workers(train_here=True):
        emit(ended("ingest", reused=False))
        assert len(children() - before) == 1
        emit(ended("train", reused=True))
        assert children() == before
    with pytest.raises(DataContractError), ahead.prestart_workers(train_here=True):
        emit(ended("ingest", reused=False))
        assert len(children() - before) == 1
        raise DataContractError("for this test")
    assert children() == before
