import ast
import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from schemas.errors import StageNotWritten, StoredArtifactError
from schemas.layout import RECORD_NAME
from schemas.references import StageRecord
from tasks.runtime.files import atomic_write, describe_files, digest_of, write_json
from tasks.runtime.fingerprint import code_digest
from tasks.runtime.stage_cache import read_stage, run_stage
from tasks.runtime.stages import PREPARE


def write() -> Any:
    def build(folder: Path) -> dict[str, Any]:
        (folder / "output.txt").write_text("made")
        return {"length": 4}

    return build


def _unreachable(folder: Path) -> dict[str, Any]:
    raise AssertionError("an existing output was built again")


def test_a_second_run_reuses_the_output_and_its_facts(tmp_path: Path) -> None:
    first, facts = run_stage(tmp_path, PREPARE, {"data": "abc"}, write())
    second, again = run_stage(tmp_path, PREPARE, {"data": "abc"}, _unreachable)
    assert (first.reused, second.reused) == (False, True)
    assert second.model_copy(update={"reused": False}) == first
    assert facts == again == {"length": 4}


def test_inputs_code_and_lock_decide_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def path(inputs: dict[str, Any]) -> Path:
        record, _ = run_stage(tmp_path, PREPARE, inputs, write())
        assert not record.reused
        return record.path

    paths = {path({"data": "abc"}), path({"data": "abd"})}
    monkeypatch.setattr("tasks.runtime.stage_cache.code_digest", lambda core: "edited")
    paths.add(path({"data": "abc"}))
    monkeypatch.setattr("tasks.runtime.stage_cache.lock_digest", lambda: "newer")
    paths.add(path({"data": "abc"}))
    assert len(paths) == 4


@pytest.mark.parametrize("damage", ["changed", "missing", "record", "facts"])
def test_a_damaged_output_is_rebuilt(tmp_path: Path, damage: str) -> None:
    record, _ = run_stage(tmp_path, PREPARE, {}, write())
    output = record.path / "output.txt"
    if damage == "changed":
        output.write_text("mase")
    elif damage == "missing":
        output.unlink()
    elif damage == "facts":
        written = record.path / RECORD_NAME
        written.write_text(written.read_text().replace('"length": 4', '"length": 5'))
    else:
        (record.path / RECORD_NAME).write_text("{")
    with pytest.raises(StoredArtifactError):
        read_stage(record.path)
    again, _ = run_stage(tmp_path, PREPARE, {}, write())
    assert not again.reused
    assert output.read_text() == "made"


@pytest.mark.parametrize(
    "change", [{"facts": {"length": "4"}}, {"facts": None}, {"key": "0" * 64}, {"files": {"/etc/passwd": {}}}]
)
def test_a_record_that_was_sealed_again_is_rebuilt(tmp_path: Path, change: dict[str, Any]) -> None:
    def parse(record: StageRecord, facts: dict[str, Any]) -> tuple[StageRecord, dict[str, Any]]:
        TypeAdapter(int).validate_python(facts["length"], strict=True)
        return record, facts

    record, _ = run_stage(tmp_path, PREPARE, {}, write(), parse)
    assert run_stage(tmp_path, PREPARE, {}, write(), parse)[0].reused
    path = record.path / RECORD_NAME
    content = {**json.loads(path.read_bytes()), **change}
    del content["record_sha256"]
    write_json(path, {**content, "record_sha256": digest_of(content)})
    again, facts = run_stage(tmp_path, PREPARE, {}, write(), parse)
    assert (again.reused, facts) == (False, {"length": 4})


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b"\xff", b"NaN", b"pipe", b"link"])
def test_what_is_no_record_is_rebuilt(tmp_path: Path, content: bytes) -> None:
    path = run_stage(tmp_path, PREPARE, {}, write())[0].path / RECORD_NAME
    path.unlink()
    if content == b"pipe":
        os.mkfifo(path)
    elif content == b"link":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(content)
    assert not run_stage(tmp_path, PREPARE, {}, write())[0].reused


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_stage(tmp_path, PREPARE, {}, fail)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_an_error_text_names_no_temporary_folder(tmp_path: Path) -> None:
    def build(folder: Path) -> dict[str, Any]:
        raise OSError(f"Failed to open local file '{folder / 'x'}'")  # as pyarrow does, without a file name

    with pytest.raises(StageNotWritten, match=r"Failed to open local file '.*/[0-9a-f]+/x'\.$"):
        run_stage(tmp_path, PREPARE, {}, build)


def test_parsing_disturbed_by_a_thread_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parse, calls, roots = ast.parse, 0, (tmp_path / "calm", tmp_path / "disturbed")
    for root in roots:
        (root / "tasks").mkdir(parents=True)
        (root / "tasks" / "some.py").write_text("import tasks.facts\n")
        (root / "tasks" / "facts.py").write_text("A = 1\n")
    expected = code_digest(("tasks.some",), roots[0])

    def disturbed(source: str) -> ast.Module:
        nonlocal calls
        calls += 1
        if calls % 3:
            raise SystemError("AST constructor recursion depth mismatch (before=66, after=92)")
        return parse(source)

    monkeypatch.setattr(ast, "parse", disturbed)
    assert code_digest(("tasks.some",), roots[1]) == expected
    assert calls == 6


def test_key_order_does_not_change_a_digest() -> None:
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def test_a_replaced_file_is_whole_or_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text("before")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("ha")
        raise RuntimeError
    assert path.read_text() == "before"
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps("after"))
    assert path.read_text() == '"after"'
    assert list(tmp_path.iterdir()) == [path]


def test_a_resealed_output_is_reused(tmp_path: Path) -> None:
    """Digests detect accidents. Anyone who can write to the folder can write them again."""
    record, _ = run_stage(tmp_path, PREPARE, {}, write())
    (record.path / "output.txt").write_text("faked")
    content = json.loads((record.path / RECORD_NAME).read_bytes())
    del content["record_sha256"]
    (record.path / RECORD_NAME).unlink()
    content["files"] = describe_files(record.path)
    write_json(record.path / RECORD_NAME, {**content, "record_sha256": digest_of(content)})
    again, _ = run_stage(tmp_path, PREPARE, {}, _unreachable)
    assert (again.reused, again.digest == record.digest) == (True, False)
