"""Every command that a message of the product names can be typed as it is printed."""

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.main import COMMANDS as COMMANDS_OF_THE_PARSER
from cli.main import command_parser
from cli.printed_commands import one_sentence_per_line, program, repeat_flags, runnable
from schemas.config import PROJECT_ROOT

PRODUCT = ("cli", "flows", "schemas", "tasks")
COMMAND = re.compile(r"`((?:fashion-ann|prefect|make) [^`]+)`")
_NUMBERED_DATASET = re.compile(r"(?<=dataset )1\b|(?<=dataset show )1\b|(?<=dataset profile )1\b")
MAKEFILE = (PROJECT_ROOT / "Makefile").read_text(encoding="utf-8")


def messages(tree: ast.AST) -> Iterator[str]:
    """Yield the strings of a module that are no docstrings, with 1 in place of each value."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "1" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings | inside:
            yield node.value


def printed() -> Iterator[str]:
    for folder in PRODUCT:
        for path in sorted((PROJECT_ROOT / folder).rglob("*.py")):
            for message in messages(ast.parse(path.read_text(encoding="utf-8"))):
                # A number names no dataset.
                yield from (_NUMBERED_DATASET.sub("digits", command) for command in COMMAND.findall(message))


COMMANDS = sorted({*printed(), "prefect deployment run train-fashion-mnist/on-demand --watch"})


def test_the_search_finds_the_commands() -> None:
    assert {"fashion-ann up", "prefect block ls", "fashion-ann promote V --reason R --force"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_printed_command_has_valid_arguments(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASHION_ANN_DATASETS_DIR", str(tmp_path))
    (tmp_path / "1.toml").write_text('height = 2\nwidth = 2\nlabels = { 1 = "a", 2 = "b" }\n')
    name, *words = shlex.split(command)
    if name == "fashion-ann":
        command_parser().parse_args(words)
    elif name == "prefect":
        from prefect.cli import _app as prefect

        prefect._app.parse_args(words, exit_on_error=False, print_error=False)
    else:
        for word in (word for word in words if "=" not in word):
            target = "$(VENV)/%.stamp" if word.endswith(".stamp") else word
            assert re.search(rf"^([\w -]* )?{re.escape(target)}( [\w -]*)?:", MAKEFILE, re.MULTILINE), command


def test_a_printed_command_uses_the_same_store_and_data() -> None:
    text = (
        "Run `fashion-ann versions`, `fashion-ann up`, `fashion-ann show 1 --dataset digits`, `fashion-ann train` or "
        "`fashion-ann dataset show digits`, then `make up`."
    )
    accepted = {name: command.flags for name, command in COMMANDS_OF_THE_PARSER.items()}
    try:
        repeat_flags(accepted, artifacts_dir="/a b", data_dir="/data", dataset="digits")
        commands = re.findall("`([^`]+)`", runnable(text))
    finally:
        repeat_flags({})
    assert [shlex.split(command)[1:] for command in commands[:5]] == [
        ["versions", "--artifacts-dir", "/a b", "--dataset", "digits"],
        ["up", "--artifacts-dir", "/a b"],
        ["show", "1", "--dataset", "digits", "--artifacts-dir", "/a b"],
        ["train", "--artifacts-dir", "/a b", "--data-dir", "/data", "--dataset", "digits"],
        ["dataset", "show", "digits", "--artifacts-dir", "/a b"],
    ]
    assert commands[5] == f"{program('make')} up"


def test_a_long_refusal_has_a_line_for_each_sentence() -> None:
    sentence = "The folder is empty, and a sentence of some length follows, with v1.2 of a file and more words still."
    message = " ".join([sentence] * 5)
    assert one_sentence_per_line(message) == "\n".join([sentence] * 5)
    assert one_sentence_per_line(f"{sentence} {sentence}") == f"{sentence} {sentence}"


def test_a_program_on_the_path_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(sys.executable).with_name("fashion-ann")
    monkeypatch.setenv("PATH", str(own.parent))
    assert program("fashion-ann") == "fashion-ann"
    monkeypatch.setenv("PATH", "")
    assert program("fashion-ann").endswith("bin/fashion-ann")
    assert runnable("Run `fashion-ann versions`, or `make up`: fashion-ann versions") == (
        f"Run `{program('fashion-ann')} versions`, or `{program('make')} up`: fashion-ann versions"
    )
    assert program("make").endswith("make")
