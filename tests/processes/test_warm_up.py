from pathlib import Path

import pytest

from schemas.errors import DataContractError
from tasks.model.warm_up import pipeline_session
from tasks.runtime.events import emit
from tests.processes.test_worker_process import children
from tests.tasks.model.test_warm_up import finished


def test_unused_workers_end_with_the_session(tmp_path: Path) -> None:
    before = children()
    with pipeline_session(tmp_path, prestart_trainer=True):
        emit(finished("ingest", reused=False))
        assert len(children() - before) == 1
        emit(finished("train", reused=True))
        assert children() == before
    with pytest.raises(DataContractError), pipeline_session(tmp_path, prestart_trainer=True):
        emit(finished("ingest", reused=False))
        assert len(children() - before) == 1
        raise DataContractError("for this test")
    assert children() == before
