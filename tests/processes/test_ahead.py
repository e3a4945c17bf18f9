import pytest

from schemas.errors import DataContractError
from tasks import ahead
from tasks.progress import tell
from tests.processes.test_own_process import WORKER, children
from tests.tasks.test_ahead import ended


def test_what_was_begun_is_ended_once_training_is_reused_and_with_the_block_also_after_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = children()
    monkeypatch.setattr(ahead.fit, "__name__", WORKER)
    with ahead.begun_ahead(train_here=True):
        tell(ended("ingest", reused=False))
        assert len(children() - before) == 1
        tell(ended("train", reused=True))
        assert children() == before
    with pytest.raises(DataContractError), ahead.begun_ahead(train_here=True):
        tell(ended("ingest", reused=False))
        assert len(children() - before) == 1
        raise DataContractError("for this test")
    assert children() == before
