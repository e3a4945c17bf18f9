import ast
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import StoredArtifactError
from tasks.stage import RECORD_NAME, _code, code_digest, digest_of, read_stage, replaced, run_stage

MODULE = "tasks.prepare"


def write(text: str = "made") -> Any:
    def produce(folder: Path) -> dict[str, Any]:
        (folder / "output.txt").write_text(text)
        return {"length": len(text)}

    return produce


def _refuse(folder: Path) -> dict[str, Any]:
    raise AssertionError("a stage that is there was made again")


def test_a_second_run_reuses_the_output_and_its_facts(tmp_path: Path) -> None:
    first, facts = run_stage(tmp_path, MODULE, {"data": "abc"}, write())
    second, again = run_stage(tmp_path, MODULE, {"data": "abc"}, _refuse)
    assert (first.reused, second.reused) == (False, True)
    assert second.model_copy(update={"reused": False}) == first
    assert facts == again == {"length": 4}


def test_other_inputs_make_another_output(tmp_path: Path) -> None:
    first, _ = run_stage(tmp_path, MODULE, {"data": "abc"}, write())
    second, _ = run_stage(tmp_path, MODULE, {"data": "abd"}, write())
    assert first.path != second.path
    assert not second.reused


def test_other_code_makes_another_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_stage(tmp_path, MODULE, {}, write())
    monkeypatch.setattr("tasks.stage.code_digest", lambda module: "edited")
    record, _ = run_stage(tmp_path, MODULE, {}, write())
    assert not record.reused


def test_another_lock_makes_another_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_stage(tmp_path, MODULE, {}, write())
    monkeypatch.setattr("tasks.stage.lock_digest", lambda: "newer")
    record, _ = run_stage(tmp_path, MODULE, {}, write())
    assert not record.reused


@pytest.mark.parametrize("damage", ["changed", "missing", "record", "facts"])
def test_a_damaged_output_is_made_anew(tmp_path: Path, damage: str) -> None:
    record, _ = run_stage(tmp_path, MODULE, {}, write())
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
    again, _ = run_stage(tmp_path, MODULE, {}, write())
    assert not again.reused
    assert output.read_text() == "made"


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_stage(tmp_path, MODULE, {}, fail)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def _code_digest_anew(module: str) -> str:
    for kept in (code_digest, _code):
        kept.cache_clear()
    return code_digest(module)


def test_the_code_of_a_stage_includes_what_it_imports() -> None:
    # tasks.prepare imports schemas.contract, tasks.network does too; neither imports the other.
    assert code_digest("tasks.prepare") != code_digest("tasks.network")
    assert code_digest("tasks.prepare") != code_digest("schemas.contract")


def test_parsing_that_another_thread_disturbed_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, parse, calls = code_digest("tasks.prepare"), ast.parse, 0

    def disturbed(source: str) -> ast.Module:
        nonlocal calls
        calls += 1
        if calls % 3:
            raise SystemError("AST constructor recursion depth mismatch (before=66, after=92)")
        return parse(source)

    monkeypatch.setattr(ast, "parse", disturbed)
    assert _code_digest_anew("tasks.prepare") == expected
    assert calls > 3


def test_comments_and_layout_are_not_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.stage.PROJECT_ROOT", tmp_path)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "schemas").mkdir()
    stage, imported = tmp_path / "tasks" / "some.py", tmp_path / "schemas" / "facts.py"
    digest = partial(_code_digest_anew, "tasks.some")

    stage.write_text("from schemas.facts import A\nB = A\n")
    imported.write_text("A = 1\n")
    before = digest()
    stage.write_text("# why\nfrom schemas.facts import A\n\nB  =  A\n")
    assert digest() == before
    imported.write_text("A = 2\n")
    assert digest() != before


def test_the_digest_of_a_value_does_not_depend_on_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def test_a_replaced_file_is_whole_or_as_before(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text("before")
    with pytest.raises(RuntimeError), replaced(path) as temporary:
        temporary.write_text("ha")
        raise RuntimeError
    assert path.read_text() == "before"
    with replaced(path) as temporary:
        temporary.write_text(json.dumps("after"))
    assert path.read_text() == '"after"'
    assert list(tmp_path.iterdir()) == [path]
