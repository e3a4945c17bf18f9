"""Write Data Docs: Great Expectations' own pages of the last validation of each split.

The original pages load style sheets, scripts and a logo from the web, and a script draws the table of the index. These
pages need no network: they have the style of the report, and the index has a list of links.
"""

import html
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import StoredArtifactError
from schemas.layout import INDEX_NAME, VERDICTS_FOLDER, Artifacts, is_litter
from schemas.references import ParquetSplit
from tasks.checks.expectations import fresh_context
from tasks.runtime.files import digest_of, remove_leftover
from tasks.runtime.locks import lock
from tasks.runtime.stored_file import read_json

if TYPE_CHECKING:
    from great_expectations.data_context import EphemeralDataContext

logger = logging.getLogger(__name__)

# Scripts and their handlers, styles that would override ours, a footer with a newsletter form, and links to the web.
_REMOVED = re.compile(
    r"<script\b.*?</script>|<style>.*?</style>|<footer\b.*?</footer>|<link\b[^>]*>|<title></title>"
    r'| onclick="[^"]*"',
    re.DOTALL,
)
# Great Expectations marks warnings and failures with the same cross.
_WARNING_MARK = re.compile(
    r"fa-times text-danger(\"[^>]*></i>(?:\s|</?(?:span|div|td)\b[^>]*>)*[^<]*\. Warns (?:above|below) )"
)
_SUITE_LINK = re.compile(r'<a href="[^"]*/expectations/[^"]*" *>(.*?)</a>')
# The site contains this logo; the pages load it from the web.
_LOGO = re.compile(r'src="https://great-expectations-web-assets[^"]*"')
_TITLE = re.compile(r"<title>.*?</title>")
_CONTENT = re.compile(r'<div class="container-fluid pt-4[^>]*>')
_OTHER_RUN = "This result is of another run: the split was compared with another train file than the one listed here."
_TITLE_END = re.compile(r'(<div id="section-1-content-block-2")')


def write_data_docs(
    artifacts_dir: Path,
    dataset: str,
    data: ParquetSplit,
    result: Path,
    run: str,
    train: ParquetSplit | None = None,
) -> Path:
    """Replace the pages of the split's previous validation with those of ``result``; return the index page.

    run: the name of the validation. train: the split that a test split was compared with. Readers never see a partial
    page: files are renamed into place, the index last.
    """
    split = data.split
    docs = Artifacts(artifacts_dir).data_docs
    verdict = docs / VERDICTS_FOLDER / f"{dataset}-{split}.json"
    content = json.dumps(
        {
            "dataset": dataset,
            "split": split,
            "run": run,
            "file": data.source.name,
            "csv_sha256": data.source.sha256,
            "rows": data.rows,
            "train_csv_sha256": (data if train is None else train).source.sha256,
            # A new style draws the pages again.
            "style": digest_of(_style()),
            "when": datetime.fromtimestamp(result.stat().st_mtime, UTC).isoformat(),
            "verdict": json.loads(result.read_bytes()),
        }
    )
    artifacts_dir.mkdir(parents=True, exist_ok=True)
    with lock(artifacts_dir / f".{docs.name}.lock", waiting=f"{docs}: another run is writing pages; waiting for it"):
        if verdict.is_file() and verdict.read_text() == content and (docs / INDEX_NAME).exists():
            return docs / INDEX_NAME
        for left in artifacts_dir.glob(f".{docs.name}.????????"):  # of killed runs, since this process has the lock
            remove_leftover(left)
        prefix = f".{docs.name}."
        with tempfile.TemporaryDirectory(prefix=prefix, dir=artifacts_dir, ignore_cleanup_errors=True) as folder:
            site = Path(folder)
            (site / VERDICTS_FOLDER).mkdir()
            if verdict.parent.exists():
                shutil.copytree(verdict.parent, site / VERDICTS_FOLDER, ignore=_litter, dirs_exist_ok=True)
            (site / VERDICTS_FOLDER / verdict.name).write_text(content)
            _build(site)
            _publish(site, docs)
    return docs / INDEX_NAME


def _litter(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if is_litter(name) or not (Path(folder) / name).is_file()}


def _style() -> str:
    templates = Path(__file__).parent / "templates"
    return "\n".join((templates / name).read_text("utf-8") for name in ("colours.css", "page.css", "data_docs.css"))


def _build(site: Path) -> None:
    """Write the pages of all results in ``site``."""
    context = fresh_context()
    from great_expectations.render.renderer.site_builder import SiteBuilder

    sections: list[str] = []
    sources: dict[str, tuple[str, str]] = {}
    train_csvs: dict[str, str] = {}
    # In reverse, so that train comes before the test split that was compared with it.
    for path in sorted((site / VERDICTS_FOLDER).glob("*.json"), reverse=True):
        try:
            stored = read_json(path)
            source, dataset, links = _source(stored), stored["dataset"], []
            for profile, verdict in stored["verdict"].items():
                name = f"{dataset}-{stored['split']}-{profile}"
                address = _add_result(context, stored, name, verdict)
                sources[address] = name, source
                links.append(f'<li><a href="{html.escape(address)}">{html.escape(name)}</a>: {_counts(verdict)}</li>')
            other = train_csvs.setdefault(dataset, stored["train_csv_sha256"]) != stored["train_csv_sha256"]
            note = f"<p><strong>{_OTHER_RUN}</strong></p>" if other else ""
            title = html.escape(f"{dataset}, {stored['split']}")
            sections.append(f"<li>{title}: {html.escape(source)}{note}<ul>{''.join(links)}</ul></li>")
        except (ValueError, TypeError, LookupError, AttributeError, StoredArtifactError) as error:
            logger.warning("no page of %s, which has other content than a validation (%s)", path.name, error)
    pages = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(site)}
    builder = SiteBuilder(context, pages, site_name="artifacts", show_how_to_buttons=False)
    for section in (*builder.site_section_builders.values(), builder.site_index_builder):
        section.view_class.env = _templates()
    builder.build()
    style = _style()
    for page in site.rglob("*.html"):
        place = page.relative_to(site)
        text = _offline(page.read_text("utf-8"), f"{'../' * (len(place.parts) - 1)}static/images/logo-long.png", style)
        if place.as_posix() in sources:
            text = _named(text, *map(html.escape, sources[place.as_posix()]))
        page.write_text(text, "utf-8")
    index = site / INDEX_NAME
    text = _TITLE_END.sub(lambda found: f"<ul>{''.join(sections)}</ul>{found[0]}", index.read_text("utf-8"), count=1)
    index.write_text(text, "utf-8")


def _named(page: str, name: str, source: str) -> str:
    """Return the page of a result with its name and source in the title, and the source at its top."""
    page = _TITLE.sub(lambda _: f"<title>{name}: {source}</title>", page, count=1)
    return _CONTENT.sub(lambda found: f"{found[0]}<p>{source}</p>", page, count=1)


def _source(stored: Mapping[str, Any]) -> str:
    """Return the file that was validated, and when."""
    when = datetime.fromisoformat(stored["when"])
    return (
        f"{stored['file']}, {stored['rows']:,} rows, sha256 {stored['csv_sha256'][:16]}, validated "
        f"{when:%Y-%m-%d %H:%M:%S} UTC in run {stored['run']}"
    )


def _add_result(
    context: "EphemeralDataContext", stored: Mapping[str, Any], name: str, verdict: Mapping[str, Any]
) -> str:
    """Add the result of one profile to ``context``; return the address of its page."""
    from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult
    from great_expectations.core.run_identifier import RunIdentifier
    from great_expectations.data_context.types.resource_identifiers import (
        ExpectationSuiteIdentifier,
        ValidationResultIdentifier,
    )

    key = ValidationResultIdentifier(
        expectation_suite_identifier=ExpectationSuiteIdentifier(name=name),
        run_id=RunIdentifier(run_name=stored["run"], run_time=stored["when"]),
        batch_identifier=f"{stored['dataset']}-{stored['split']}",
    )
    context.validation_results_store.set(
        key,
        ExpectationSuiteValidationResult(
            **{part: verdict[part] for part in ("success", "statistics", "suite_parameters")},
            results=[_escaped(result) for result in verdict["results"]],
            meta={**verdict["meta"], "run_id": key.run_id},
            suite_name=name,
        ),
    )
    return Path("validations", *key.to_tuple()).as_posix() + ".html"


def _escaped(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result whose texts, which may name files, are HTML: Great Expectations writes them as they are."""
    config = dict(result["expectation_config"])
    for name in ("description", "notes"):
        if isinstance(text := config.get(name), str):
            config[name] = html.escape(text, quote=False)
    return {**result, "expectation_config": config}


@cache
def _templates() -> Any:
    """Return one Jinja environment for all views, since compiling templates is most of a page's cost."""
    from great_expectations.render.view import DefaultJinjaPageView

    return DefaultJinjaPageView().env


def _counts(verdict: Mapping[str, Any]) -> str:
    """Return the counts of a result, such as "18 of 22 passed, 2 warnings, 2 failures"."""
    results = verdict["results"]
    unmet = [entry["expectation_config"]["severity"] for entry in results if not entry["success"]]
    warnings = unmet.count("warning")
    unmet_counts = ((warnings, "warning"), (len(unmet) - warnings, "failure"))
    return f"{len(results) - len(unmet)} of {len(results)} passed" + "".join(
        f", {number} {word}{'s' * (number > 1)}" for number, word in unmet_counts if number
    )


def _offline(page: str, logo: str, style: str) -> str:
    """Return the page with ``style`` in it and without anything that is loaded from the web."""
    page = _SUITE_LINK.sub(r"\1", _REMOVED.sub("", page))
    page = _WARNING_MARK.sub(r"fa-exclamation-triangle text-warning\1", page)
    page = _LOGO.sub(f'src="{logo}"', page).replace("<html>", '<html lang="en">', 1)
    return page.replace("</head>", f"<style>{style}</style></head>", 1)


def _publish(site: Path, docs: Path) -> None:
    """Move the pages of ``site`` to ``docs`` and remove all others."""
    written = {path.relative_to(site) for path in site.rglob("*") if path.is_file()}
    # Pages before the index that links to them, the results last: after a kill the next run draws everything again.
    last = (Path(INDEX_NAME), *(path for path in written if path.parts[0] == VERDICTS_FOLDER))
    for path in (*written.difference(last), *last):
        (docs / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).replace(docs / path)
    for path in [path for path in docs.rglob("*") if path.is_file() and path.relative_to(docs) not in written]:
        if is_litter(path.name):
            continue
        path.unlink()
        while path.parent != docs and not any(path.parent.iterdir()):
            path = path.parent
            path.rmdir()
