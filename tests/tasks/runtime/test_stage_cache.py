import ast
import json
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import StoredArtifactError
from schemas.layout import RECORD_NAME
from tasks.runtime.files import atomic_write, digest_of
from tasks.runtime.fingerprint import code_digest
from tasks.runtime.stage_cache import Stage, read_stage, run_stage

STAGE = Stage("prepare", core=("tasks.data.splits",))


def write(text: str = "made") -> Any:
    def build(folder: Path) -> dict[str, Any]:
        (folder / "output.txt").write_text(text)
        return {"length": len(text)}

    return build


def _refuse(folder: Path) -> dict[str, Any]:
    raise AssertionError("a stage that is there was made again")


def test_a_second_run_reuses_the_output_and_its_facts(tmp_path: Path) -> None:
    first, facts = run_stage(tmp_path, STAGE, {"data": "abc"}, write())
    second, again = run_stage(tmp_path, STAGE, {"data": "abc"}, _refuse)
    assert (first.reused, second.reused) == (False, True)
    assert second.model_copy(update={"reused": False}) == first
    assert facts == again == {"length": 4}


def test_other_inputs_make_another_output(tmp_path: Path) -> None:
    first, _ = run_stage(tmp_path, STAGE, {"data": "abc"}, write())
    second, _ = run_stage(tmp_path, STAGE, {"data": "abd"}, write())
    assert first.path != second.path
    assert not second.reused


def test_other_code_makes_another_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_stage(tmp_path, STAGE, {}, write())
    monkeypatch.setattr("tasks.runtime.stage_cache.code_digest", lambda core: "edited")
    record, _ = run_stage(tmp_path, STAGE, {}, write())
    assert not record.reused


def test_another_lock_makes_another_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_stage(tmp_path, STAGE, {}, write())
    monkeypatch.setattr("tasks.runtime.stage_cache.lock_digest", lambda: "newer")
    record, _ = run_stage(tmp_path, STAGE, {}, write())
    assert not record.reused


@pytest.mark.parametrize("damage", ["changed", "missing", "record", "facts"])
def test_a_damaged_output_is_made_anew(tmp_path: Path, damage: str) -> None:
    record, _ = run_stage(tmp_path, STAGE, {}, write())
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
    again, _ = run_stage(tmp_path, STAGE, {}, write())
    assert not again.reused
    assert output.read_text() == "made"


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_stage(tmp_path, STAGE, {}, fail)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def _project(root: Path, **modules: str) -> Path:
    """Write a checkout of modules of ``tasks``, and return its folder."""
    (root / "tasks").mkdir(parents=True)
    for name, code in modules.items():
        (root / "tasks" / f"{name}.py").write_text(code)
    return root


CORE = ("tasks.some",)
CODE = """from tasks.facts import A

logger = print


def b():
    return A
"""
REWORDED = {
    "comment": CODE.replace("return A", "return A  # why"),
    "layout": CODE.replace("return A", "return  (A)"),
    "module docstring": f'"""Return A."""\n{CODE}',
    "function docstring": CODE.replace("return A", '"""Return A."""\n    return A'),
    "log call": CODE.replace("return A", 'logger.info("A is %s", A)\n    return A'),
}


@pytest.mark.parametrize("reworded", REWORDED.values(), ids=REWORDED)
def test_wording_is_not_part_of_a_code_digest(tmp_path: Path, reworded: str) -> None:
    before = _project(tmp_path / "before", some=CODE, facts="A = 1")
    after = _project(tmp_path / "after", some=reworded, facts="A = 1")
    assert code_digest(CORE, before) == code_digest(CORE, after)


@pytest.mark.parametrize(
    "changed",
    [{"some": CODE.replace("return A", "return A + 1")}, {"facts": "A = 2"}],
    ids=["own code", "imported code"],
)
def test_code_is_part_of_a_code_digest(tmp_path: Path, changed: dict[str, str]) -> None:
    before = _project(tmp_path / "before", some=CODE, facts="A = 1")
    after = _project(tmp_path / "after", **{"some": CODE, "facts": "A = 1", **changed})
    assert code_digest(CORE, before) != code_digest(CORE, after)


def test_parsing_disturbed_by_a_thread_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots = [_project(tmp_path / name, some=CODE, facts="A = 1") for name in ("calm", "disturbed")]
    expected, parse, calls = code_digest(CORE, roots[0]), ast.parse, 0

    def disturbed(source: str) -> ast.Module:
        nonlocal calls
        calls += 1
        if calls % 3:
            raise SystemError("AST constructor recursion depth mismatch (before=66, after=92)")
        return parse(source)

    monkeypatch.setattr(ast, "parse", disturbed)
    assert code_digest(CORE, roots[1]) == expected
    assert calls == 6


def test_the_digest_of_a_value_does_not_depend_on_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def test_a_replaced_file_is_whole_or_as_before(tmp_path: Path) -> None:
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
