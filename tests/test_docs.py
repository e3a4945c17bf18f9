"""README and docs match the command line, the Makefile and the files of this checkout."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cli import command_page, stage_page
from cli.arguments import COMMON_FLAGS, DATASET, Command, config_flag, default_text
from cli.deploy import deployments
from cli.main import COMMANDS
from flows.train_fashion_mnist import train_fashion_mnist
from schemas.config import PROJECT_ROOT, PromotionConfig, TrainingConfig
from tests import field_faults

PAGES = sorted([PROJECT_ROOT / "README.md", PROJECT_ROOT / "artifacts" / "README.md", *PROJECT_ROOT.glob("docs/*.md")])

# Flags of other programs in these pages.
OTHER_FLAGS = {"--watch", "--pool", "--params", "--help", "--rounds", "--only", "--part"}


def flags_of(command: Command) -> set[str]:
    common = (*COMMON_FLAGS, DATASET) if command.dataset else COMMON_FLAGS
    return {"--help", *(name for group in (common, *command.arguments) for entry in group for name in entry.names)}


FLAGS = {name: flags_of(command) for name, command in COMMANDS.items()}
FIRST_WORDS = {name.split()[0] for name in FLAGS}


def code_of(page: Path) -> list[str]:
    """Return each inline code span and each line of fenced code, without comments."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [re.sub(r"\s+#.*", "", line) for block in fenced for line in block.splitlines()]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return [*lines, *inline]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_flags_exist(page: Path) -> None:
    for code in code_of(page):
        match = re.match(r"(?:\$ )?(?:\.venv/bin/)?fashion-ann\s+([^|;&]+)", code)
        if match and ":" not in match[1].split()[0]:  # `fashion-ann train: ` starts a message
            first, *words = shlex.split(match[1])
            assert first in FIRST_WORDS, code
            command = f"{first} {words[0]}" if words and f"{first} {words[0]}" in FLAGS else first
            given = {word.strip("[]").partition("=")[0] for word in words if word.strip("[]").startswith("--")}
            assert given <= FLAGS.get(command, set()), code
        elif re.match(r"--[a-z]", code):
            assert set(re.findall(r"--[a-z][a-z-]*", code)) <= OTHER_FLAGS.union(*FLAGS.values()), code


def test_the_page_of_the_command_line_is_current() -> None:
    text = command_page.PAGE.read_text(encoding="utf-8")
    assert text == command_page.page(), "python -m cli.command_page > docs/cli.md"
    assert set(re.findall(r"^## (?!Flags)(.+)$", text, re.MULTILINE)) == set(FLAGS)


def test_the_page_of_the_stages_is_current() -> None:
    assert stage_page.PAGE.read_text(encoding="utf-8") == stage_page.page(), "python -m cli.stage_page > docs/stages.md"


def test_every_deployment_is_in_the_table_of_events() -> None:
    text = (PROJECT_ROOT / "docs" / "events.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `([a-z-]+/[a-z-]+)` \|", text, re.MULTILINE)) == sorted(deployments())


def test_the_page_of_field_faults_is_current() -> None:
    """It is collected in another process, because pytest does not run inside itself."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.field_faults"], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
    )
    text = field_faults.PAGE.read_text(encoding="utf-8")
    assert text == done.stdout, "python -m tests.field_faults > docs/field-faults.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    rules = (PROJECT_ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {name for line in re.findall(r"^([a-z -]+):(?!=)", rules, re.MULTILINE) for name in line.split()}
    for code in code_of(page):
        if match := re.match(r"make((?: [a-z-]+)+)", code):
            assert set(match[1].split()) <= targets, code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        path, _, heading = "".join(target).partition("#")
        assert "://" not in path, "pages do not depend on other sites"
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), path
        if heading:
            headings = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^a-z0-9 -]", "", name.lower()).replace(" ", "-") for name in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_shown_commands_run_in_the_checkout(page: Path) -> None:
    """Commands are shown with `.venv/bin/`, because that folder is not on the PATH."""
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    bare = r"(fashion-ann \w+|prefect|python3?|pip|pytest)(?![\w:./-])"  # `fashion-ann train: ` starts a message
    assert [line for block in blocks for line in block.splitlines() if re.match(bare, line)] == []


def test_configuration_table_has_flags_and_defaults() -> None:
    page = (PROJECT_ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    own = set(train_fashion_mnist.parameters.properties) - {"training", "promotion"}
    assert own <= set(re.findall(r"^\| `([a-z_]+)` \|", page, re.MULTILINE))
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for parameter, model in (("training", TrainingConfig), ("promotion", PromotionConfig)):
        for key, field in model.model_fields.items():
            row = re.search(rf"^\| `{parameter}\.{key}` \| `{config_flag(key)}` \| (.+) \|$", text, re.MULTILINE)
            assert row is not None, key
            assert row[1].strip("`").startswith(default_text(key, field.default)), (key, row[1])
