import signal
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.config import PROJECT_ROOT
from schemas.errors import DataContractError
from tasks.model.warm_up import pipeline_session, unmapped_libraries
from tasks.runtime.events import StageMissed, emit
from tests.processes.test_worker_process import children
from tests.tasks.model.test_warm_up import finished


def test_unused_workers_end_with_the_session(tmp_path: Path) -> None:
    before = children()
    with pipeline_session(tmp_path, prestart_trainer=True):
        emit(StageMissed("ingest", "train"))
        assert len(children() - before) == 1
        emit(finished("train", reused=True))
        assert children() == before
    with pytest.raises(DataContractError), pipeline_session(tmp_path, prestart_trainer=True):
        emit(StageMissed("ingest", "train"))
        assert len(children() - before) == 1
        raise DataContractError("for this test")
    assert children() == before


def test_libraries_are_unmapped_and_still_work() -> None:
    program = """
import re
from contextlib import nullcontext
from pathlib import Path
from tasks.model.warm_up import unmapped_libraries

def file_pages():
    return int(re.search(r"RssFile:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))

with {block}:
    import pyarrow
    import pyarrow.compute as pc
print(file_pages(), pc.sum(pyarrow.array([1, 2])))
"""
    pages = {}
    for block in ("nullcontext()", "unmapped_libraries()"):
        command = [sys.executable, "-c", program.format(block=block)]
        output = subprocess.run(command, cwd=PROJECT_ROOT, check=True, capture_output=True, text=True).stdout.split()
        pages[block], total = map(int, output)
        assert total == 3
    assert pages["unmapped_libraries()"] < pages["nullcontext()"] / 2


def test_the_timer_of_unmapping_does_not_repeat() -> None:
    earlier = signal.getsignal(signal.SIGPROF)
    with unmapped_libraries():
        delay, interval = signal.getitimer(signal.ITIMER_PROF)
        assert delay > 0
        # A repeating timer interrupts its own handler on a busy machine, until Python's stack is full.
        assert interval == 0
        signal.raise_signal(signal.SIGPROF)
        assert signal.getitimer(signal.ITIMER_PROF)[0] > 0
    assert (signal.getitimer(signal.ITIMER_PROF)[0], signal.getsignal(signal.SIGPROF)) == (0, earlier)
