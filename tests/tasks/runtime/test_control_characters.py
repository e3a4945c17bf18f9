import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.main import main
from tasks.runtime.control_characters import escape_log_records, escaped, escaping_output

# ANSI and OSC sequences, C1, DEL, overrides of the writing direction, line separators, a byte that is no UTF-8.
HOSTILE = "\x1b[2J\x1b]0;title\x07\r\t\0\x7f\x85\x9b31m\u202e\u2066\u2028\u2029\u200f\udcff"
SHOWN = r"\x1b[2J\x1b]0;title\x07\r\t\x00\x7f\x85\x9b31m\u202e\u2066\u2028\u2029\u200f\udcff"


def test_control_characters_are_escaped_and_newlines_stay() -> None:
    assert escaped(HOSTILE) == SHOWN
    assert escaped("Zo\xeb 一\n✓") == "Zo\xeb 一\n✓"


def test_output_is_escaped_during_the_block(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with escaping_output():
        for stream in (sys.stdout, sys.stderr):
            stream.write(HOSTILE)
        assert not sys.stdout.isatty()
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr() == (SHOWN, SHOWN)


@pytest.fixture
def restored_factory() -> Iterator[None]:
    factory = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(factory)


def test_log_records_are_escaped_with_their_traceback(restored_factory: None) -> None:
    for _ in range(2):
        escape_log_records()
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    logging.getLogger("tasks").addHandler(handler)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logging.getLogger("tasks.ingest").exception("%s is\nbad", HOSTILE)
    finally:
        logging.getLogger("tasks").removeHandler(handler)
    assert out.getvalue().startswith(f"{SHOWN} is\nbad\nTraceback")
    assert f"ValueError: {SHOWN}" in out.getvalue()


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_command_prints_no_control_character(
    flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FASHION_ANN_ARTIFACTS_DIR", str(tmp_path / "\x1b[2J\u202e"))
    with pytest.raises(SystemExit):
        main(["show", "\x9b31m", *flags])
    with pytest.raises(SystemExit):
        main(["versions", "--\x1b[2J"])
    with pytest.raises(SystemExit):
        main(["versions", *flags])
    for text in capsys.readouterr():
        assert re.search(r"[^\n -~]", text) is None
        if text.startswith("["):
            json.loads(text)
