"""Data Docs: Great Expectations' own pages of the last verdict on each split, under ``data_docs`` of the artifacts.

They take style sheets, scripts and a logo from the web, and the index's table is drawn by a script. Here they are made
to do without: styled as the report is, and with a list of links in the index.
"""

import html
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from schemas.contract import Split
from schemas.layout import INDEX_NAME, VERDICTS_FOLDER, Artifacts
from tasks.checks.expectations import fresh_context
from tasks.runtime.files import digest_of, remove_path

if TYPE_CHECKING:
    from jinja2 import Environment

# Beside the pages, what they were made from: a verdict a dataset and split.
_STYLES = [Path(__file__).parent / "templates" / name for name in ("colours.css", "page.css", "data_docs.css")]
# The footer asks to subscribe to a letter; the own styles are laid over those of the web; a link's target is not made;
# what a click would call is not there.
_NOT_OURS = re.compile(
    r"<script\b.*?</script>|<style>.*?</style>|<footer\b.*?</footer>|<link\b[^>]*>|<title></title>"
    r'| onclick="[^"]*"',
    re.DOTALL,
)
# Great Expectations draws one cross for what refuses a split and for what is only told.
_WARNED = re.compile(r"fa-times text-danger(\"[^>]*></i>(?:\s|</?(?:span|div|td)\b[^>]*>)*[^<]*, else a warning\.)")
_SUITE_LINK = re.compile(r'<a href="[^"]*/expectations/[^"]*" *>(.*?)</a>')
# The site has the logo that is asked of its maker's server each time that a page is looked at.
_LOGO = re.compile(r'src="https://great-expectations-web-assets[^"]*"')
_TITLE_END = re.compile(r'(<div id="section-1-content-block-2")')


def write_data_docs(artifacts_dir: Path, dataset: str, split: Split, result: Path, run: str) -> Path:
    """Put the verdict in ``result`` in the place of that on the same split before; returns the index page.

    ``run`` is a name for the validation. A reader never meets half a page: files are made elsewhere and renamed, the
    index last.
    """
    docs = Artifacts(artifacts_dir).data_docs
    verdict = docs / VERDICTS_FOLDER / f"{dataset}-{split}.json"
    content = json.dumps(
        {
            "dataset": dataset,
            "split": split,
            "run": run,
            # Pages are drawn anew for another style, too.
            "style": digest_of(_style()),
            "when": datetime.fromtimestamp(result.stat().st_mtime, UTC).isoformat(),
            "verdict": json.loads(result.read_bytes()),
        }
    )
    artifacts_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(artifacts_dir / f".{docs.name}.lock"):
        if verdict.exists() and verdict.read_text() == content and (docs / INDEX_NAME).exists():
            return docs / INDEX_NAME
        for left in artifacts_dir.glob(f".{docs.name}.????????"):  # by a killed run: the lock is ours
            remove_path(left)
        with tempfile.TemporaryDirectory(prefix=f".{docs.name}.", dir=artifacts_dir) as folder:
            site = Path(folder)
            (site / VERDICTS_FOLDER).mkdir()
            if verdict.parent.exists():
                shutil.copytree(verdict.parent, site / VERDICTS_FOLDER, dirs_exist_ok=True)
            (site / VERDICTS_FOLDER / verdict.name).write_text(content)
            _build(site)
            _publish(site, docs)
    return docs / INDEX_NAME


def _style() -> str:
    return "\n".join(path.read_text("utf-8") for path in _STYLES)


def _build(site: Path) -> None:
    """The pages of all verdicts in ``site``."""
    context = fresh_context()
    from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult
    from great_expectations.core.run_identifier import RunIdentifier
    from great_expectations.data_context.types.resource_identifiers import (
        ExpectationSuiteIdentifier,
        ValidationResultIdentifier,
    )
    from great_expectations.render.renderer.site_builder import SiteBuilder

    links = []
    for path in sorted((site / VERDICTS_FOLDER).glob("*.json")):
        stored = json.loads(path.read_bytes())
        for profile, verdict in stored["verdict"].items():
            name = f"{stored['dataset']}-{stored['split']}-{profile}"
            key = ValidationResultIdentifier(
                expectation_suite_identifier=ExpectationSuiteIdentifier(name=name),
                run_id=RunIdentifier(run_name=stored["run"], run_time=stored["when"]),
                batch_identifier=f"{stored['dataset']}-{stored['split']}",
            )
            links.append((Path("validations", *key.to_tuple()).as_posix() + ".html", name, verdict))
            context.validation_results_store.set(
                key,
                ExpectationSuiteValidationResult(
                    **{part: verdict[part] for part in ("success", "results", "statistics", "suite_parameters")},
                    meta={**verdict["meta"], "run_id": key.run_id},
                    suite_name=name,
                ),
            )
    pages = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(site)}
    builder = SiteBuilder(context, pages, site_name="artifacts", show_how_to_buttons=False)
    for section in (*builder.site_section_builders.values(), builder.site_index_builder):
        section.view_class.env = _templates()
    builder.build()
    style = _style()
    for page in site.rglob("*.html"):
        up = "../" * (len(page.relative_to(site).parts) - 1)
        page.write_text(_offline(page.read_text("utf-8"), f"{up}static/images/logo-long.png", style), "utf-8")
    index = site / INDEX_NAME
    listed = "".join(
        f'<li><a href="{html.escape(address)}">{html.escape(name)}</a>: {_told(verdict)}</li>'
        for address, name, verdict in links
    )
    index.write_text(_TITLE_END.sub(rf"<ul>{listed}</ul>\1", index.read_text("utf-8"), count=1), "utf-8")


@cache
def _templates() -> "Environment":
    """Those of all views, kept, since it keeps what it has compiled: most of what a page costs."""
    from great_expectations.render.view import DefaultJinjaPageView

    environment: Environment = DefaultJinjaPageView().env
    return environment


def _told(verdict: Mapping[str, Any]) -> str:
    unmet = [entry["expectation_config"]["severity"] for entry in verdict["results"] if not entry["success"]]
    warned = unmet.count("warning")
    told = [f"{len(verdict['results']) - len(unmet)} of {len(verdict['results'])} expectations met"]
    told += [f"{warned} warned of"] if warned else []
    told += [f"refused for {len(unmet) - warned}"] if len(unmet) > warned else []
    return ", ".join(told)


def _offline(page: str, logo: str, style: str) -> str:
    """The page without anything that is asked of the web, with ``style`` in it."""
    page = _SUITE_LINK.sub(r"\1", _NOT_OURS.sub("", page))
    page = _WARNED.sub(r"fa-exclamation-triangle text-warning\1", page)
    page = _LOGO.sub(f'src="{logo}"', page).replace("<html>", '<html lang="en">', 1)
    return page.replace("</head>", f"<style>{style}</style></head>", 1)


def _publish(site: Path, docs: Path) -> None:
    made = [path.relative_to(site) for path in site.rglob("*") if path.is_file()]
    # What the index leads to before the index, and what it was made from at last: a killed run makes all of it anew.
    last = (Path(INDEX_NAME), *(path for path in made if path.parts[0] == VERDICTS_FOLDER))
    for path in [*(path for path in made if path not in last), *last]:
        (docs / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).replace(docs / path)
    kept = set(made)
    for path in [path for path in docs.rglob("*") if path.is_file() and path.relative_to(docs) not in kept]:
        path.unlink()
        while path.parent != docs and not any(path.parent.iterdir()):
            path = path.parent
            path.rmdir()
