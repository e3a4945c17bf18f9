"""README and docs say what the command, the Makefile and the files of this checkout really are."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from cli.main import _flag, _parser
from schemas.config import PROJECT_ROOT, PromotionConfig, TrainingConfig

PAGES = sorted([PROJECT_ROOT / "README.md", PROJECT_ROOT / "artifacts" / "README.md", *PROJECT_ROOT.glob("docs/*.md")])

# Of other programs, told about in the same pages.
OTHERS_FLAGS = {"--watch", "--pool", "--params", "--help"}


def _commands() -> dict[str, argparse.ArgumentParser]:
    parser = _parser()
    action = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(action.choices)


COMMANDS = _commands()
FLAGS = {flag for parser in COMMANDS.values() for action in parser._actions for flag in action.option_strings}


def _code(page: Path) -> list[str]:
    """Each inline code span, and each line of the fenced ones, comments aside."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [re.sub(r"\s+#.*", "", line) for block in fenced for line in block.splitlines()]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return [*lines, *inline]


def _calls(page: Path) -> list[list[str]]:
    """Arguments of each call of our command in a page."""
    found = []
    for code in _code(page):
        match = re.match(r"(?:\$ )?(?:\.venv/bin/)?fashion-ann\s+([^|;&]+)", code)
        if match and ":" not in match[1].split()[0]:  # the command's own messages begin `fashion-ann train: `
            found.append(shlex.split(match[1]))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_flag_is_one_of_the_command_line(page: Path) -> None:
    for command, *arguments in _calls(page):
        assert command in COMMANDS, f"fashion-ann {command}"
        known = COMMANDS[command]._option_string_actions
        for argument in arguments:
            flag = argument.strip("[]").partition("=")[0]
            if flag.startswith("--"):
                assert flag in known, f"fashion-ann {command} {flag}"
    for code in _code(page):
        if re.match(r"--[a-z]", code):
            for flag in re.findall(r"--[a-z][a-z-]*", code):
                assert flag in FLAGS | OTHERS_FLAGS | {"--rounds", "--only"}, flag


def test_every_command_is_told_in_the_readme() -> None:
    told = {command for command, *_ in _calls(PROJECT_ROOT / "README.md")}
    text = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8")
    assert {name for name in COMMANDS if name not in told and f"`{name}`" not in text} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_target_of_make_is_there(page: Path) -> None:
    rules = (PROJECT_ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {name for line in re.findall(r"^([a-z -]+):(?!=)", rules, re.MULTILINE) for name in line.split()}
    for code in _code(page):
        if match := re.match(r"make((?: [a-z-]+)+)", code):
            assert set(match[1].split()) <= targets, code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_picture_leads_to_a_file_or_a_heading(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        path, _, heading = "".join(target).partition("#")
        assert "://" not in path, "pages do not depend on other sites"
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), path
        if heading:
            found = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^a-z0-9 -]", "", name.lower()).replace(" ", "-") for name in found}, heading


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_that_is_shown_to_be_typed_runs_as_it_stands(page: Path) -> None:
    """In the checkout: nothing puts `.venv/bin` on anybody's PATH."""
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    typed = [line for block in blocks for line in block.splitlines()]
    bare = r"(fashion-ann \w+|prefect|python3?|pip|pytest)(?![\w:./-])"  # `fashion-ann train: ` begins a message
    assert [line for line in typed if re.match(bare, line)] == []


def test_every_key_of_the_configuration_is_in_the_readme_with_its_flag_and_default() -> None:
    text = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8")
    for parameter, model in (("training", TrainingConfig), ("promotion", PromotionConfig)):
        for key, field in model.model_fields.items():
            row = re.search(rf"^\| `{parameter}\.{key}` \| `{_flag(key)}` \| (.+) \|$", text, re.MULTILINE)
            assert row is not None, key
            default = "off" if field.default is None else str(field.default)
            assert row[1].strip("`").startswith(default), (key, row[1])
