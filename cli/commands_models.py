"""The commands for stored versions: list, inspect, compare, promote, alias, verify, reproduce and collect garbage."""

import argparse
import sys
import tempfile
import webbrowser
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.arguments import MLFLOW, VERSION, Argument, Commands, data_dir, path_argument, print_result, read_value
from cli.model_store import open_store
from cli.printed_commands import runnable
from schemas.config import ShadowRows, artifacts_folder, config_lines, data_folder, expanded
from schemas.errors import FashionAnnError, NotReproduced, StoredArtifactError, WrongUsage
from schemas.layout import METRICS_NAME, REPORT_NAME, SIGNATURE_NAME, VERDICT_NAME
from schemas.store import StoredMetrics, Verdict, shown_outcome
from tasks.runtime.stages import run_name

if TYPE_CHECKING:
    from cli.server_process import ApiProblem
    from schemas.store import AliasEvent, Manifest
    from tasks.registry.champion import Move
    from tasks.registry.gc import Plan
    from tasks.registry.store import ModelStore, VersionSummary

commands = Commands()

_REASON = Argument("--reason", required=True, metavar="R", help="recorded in the alias log")
_CHECK_CHAMPION = "Run `fashion-ann versions` to see the current champion."


def _empty(store: "ModelStore") -> str:
    return f"No version in {store.root} yet. `fashion-ann train` creates one."


@commands.add(
    "versions",
    Argument("--sort", metavar="COLUMN", default="version", help="order by this column; the best accuracy comes first"),
    Argument("--last", type=int, metavar="N", help="list the newest N versions only"),
    help="list the model versions",
    description="List the model versions with verdicts, aliases and notes. Further columns are the settings that "
    "differ between them: hyperparameters, promotion rules, device, and digests of data, topology and training code.",
    writes=False,
)
def _versions(options: argparse.Namespace) -> None:
    if options.last is not None and options.last < 1:
        raise WrongUsage(f"--last: expected at least 1, received {options.last}.")
    store = open_store(options)
    every = store.summaries()
    versions = _sorted(every[-(options.last or 0) :], options.sort)
    print_result(options, [vars(row) for row in versions], _version_rows(versions) if every else [_empty(store)])
    # After the intact versions are listed, the others decide the exit status.
    if faults := [fault for row in versions if (fault := row.damaged or row.other_layout)]:
        raise StoredArtifactError("\n".join(faults))


def _sorted(versions: Iterable["VersionSummary"], column: str) -> list["VersionSummary"]:
    """Return the versions ordered by a column of `_columns`, those without a value last."""
    rows = list(versions)
    names = {"version", *(name for row in rows for name in _columns(row))}
    if rows and column not in names:
        raise WrongUsage(f"--sort: expected one of {', '.join(sorted(names))}, received {column}.")

    def key(row: "VersionSummary") -> tuple[bool, float, str]:
        value = row.version if column == "version" else _columns(row).get(column)
        number = float(value) if isinstance(value, int | float) else 0.0
        return value is None, -number if column == "accuracy" else number, str(value)

    return sorted(rows, key=key)


def _columns(row: "VersionSummary") -> dict[str, Any]:
    """Return the values of a version by column, without its number."""
    state = "damaged" if row.damaged else "older layout" if "older layout" in (row.other_layout or "") else None
    return {
        "created": row.created,
        "accuracy": row.test_accuracy,
        "loss": row.test_loss,
        "verdict": state or ("newer layout" if row.other_layout else shown_outcome(row.outcome or "kept")),
        "aliases": ", ".join(row.aliases) or None,
        **row.settings,
        "note": row.note,
    }


def _version_rows(versions: Sequence["VersionSummary"]) -> Iterator[str]:
    rows = [_columns(row) for row in versions]
    compared = [row.settings for row in versions if row.settings]
    differing = [
        name
        for name in dict.fromkeys(name for settings in compared for name in settings)
        if any(settings.get(name) != compared[0].get(name) for settings in compared)
    ]
    optional = [*differing, *(["note"] if any(row.get("note") for row in rows) else [])]
    names = ("created", "accuracy", "loss", "verdict", "aliases", *optional)
    decimals = {"accuracy", "loss"}
    table = [("version", *names)]
    for version, row in zip(versions, rows, strict=True):
        values = ((name, row.get(name)) for name in names)
        cells = ("" if value is None else f"{value:.4f}" if name in decimals else str(value) for name, value in values)
        table.append((str(version.version), *cells))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for number, *others in table:
        yield f"{number:>{widths[0]}}  {'  '.join(map(str.ljust, others, widths[1:]))}".rstrip()


@commands.add(
    "show",
    VERSION,
    Argument("--config", action="store_true", help="print only its training settings, as a file for `train --config`"),
    help="show the details of a version",
    writes=False,
)
def _show(options: argparse.Namespace) -> None:
    store = open_store(options)
    version = store.version(options.version)
    version.check()
    if options.config:
        recipe = version.manifest.recipe
        print_result(options, recipe.model_dump(), config_lines(recipe))
        return
    shown = {
        **version.manifest.as_json(),
        "metrics": version.read_json(METRICS_NAME, StoredMetrics).as_json(),
        "aliases": store.aliases_of(version.number),
        "path": str(version.folder),
        "signed": version.signature() is not None,
        "signed_by": None,
        "not_accepted": None,
    }
    try:
        shown["signed_by"] = version.check_signature()
    except StoredArtifactError as error:  # shown, because a person decides whether to sign it
        shown["not_accepted"] = str(error)
    print_result(options, shown, _show_lines(version.manifest, shown), sort_keys=True)


def _settings_line(manifest: "Manifest") -> str:
    return "  " + ", ".join(f"{key} {value}" for key, value in manifest.used_settings.items())


def _show_lines(manifest: "Manifest", shown: dict[str, Any]) -> Iterator[str]:
    aliases = f" ({', '.join(shown['aliases'])})" if shown["aliases"] else ""
    yield f"version {shown['version']}{aliases}, created {shown['created']}"
    if shown["note"]:
        yield f"  note: {shown['note']}"
    yield f"  {shown['verdict']['reason']}"
    yield f"  test accuracy {shown['test_accuracy']:.4f}, test loss {shown['test_loss']:.4f}"
    device = shown["device"]
    several = f"{device['count']} x " if device["count"] > 1 else ""
    yield f"  trained on {several}{device['name']}, {shown['epochs_run']} epochs, {shown['training_seconds']:.1f} s"
    yield _settings_line(manifest)
    for row in shown["metrics"]["per_class"]:
        scores = "  ".join(f"{name} {row[name]:.3f}" for name in ("precision", "recall", "f1"))
        yield f"  {row['name']:<12} {scores}  {row['rows']} rows"
    signed_by = f" by {shown['signed_by']}" if shown["signed_by"] else ""
    yield f"  {shown['not_accepted'] or ('signed' if shown['signed'] else 'not signed') + signed_by}"
    for name, entry in shown["files"].items():
        yield f"  {entry['sha256']}  {entry['bytes']:>9}  {shown['path']}/{name}"


@commands.add(
    "why", VERSION, help="show why a version was promoted or not, and the cache key of each stage", writes=False
)
def _why(options: argparse.Namespace) -> None:
    store = open_store(options)
    version = store.version(options.version)
    version.check()
    verdict = version.read_json(VERDICT_NAME, Verdict)
    events = [event for event in store.aliases.read() if version.number in (event.to, event.before)]
    result = {
        "version": version.number,
        "verdict": verdict.as_json(),
        "events": [event.as_json() for event in events],
        "configuration": version.manifest.configuration,
        "lineage": [entry.as_json() for entry in version.manifest.lineage],
    }
    print_result(options, result, _why_lines(version.manifest, verdict, events), sort_keys=True)


def _why_lines(manifest: "Manifest", verdict: Verdict, events: Iterable["AliasEvent"]) -> Iterator[str]:
    yield f"version {manifest.version}: {shown_outcome(verdict.outcome)}"
    yield f"  {verdict.reason} (policy: {verdict.policy})"
    for rule in verdict.rules:
        yield f"  {'passed' if rule.holds else 'FAILED'}  {rule.rule}: {rule.finding}, expected {rule.bound}"
    yield _settings_line(manifest)
    for entry in manifest.lineage:
        name = run_name(entry.stage, entry.split)
        yield f"  {'reused' if entry.reused else 'ran   '}  {name:<15} cache key {entry.key}"
    for event in events:
        before = "none" if event.before is None else event.before
        yield f"  {event.when}  {event.alias} {before} -> {event.to}, {event.by}: {event.reason}"


@commands.add(
    "report",
    VERSION,
    Argument("--open", action="store_true", help="open it in the browser"),
    help="print the path of a version's report after checking its digest",
    description="Print the path of the HTML report: verdict, metrics, most confident errors, data, provenance and "
    "the commands that reproduce the version.",
    writes=False,
)
def _report(options: argparse.Namespace) -> None:
    from tasks.reports.versions_page import write_versions_page

    store = open_store(options)
    version = store.version(options.version)
    path = version.path(REPORT_NAME)
    if version.remote is not None:
        write_versions_page(store)  # it links to the reports on this machine
    print_result(options, {"version": version.number, "report": path}, [str(path)])
    if options.open and not webbrowser.open(path.absolute().as_uri()):
        raise FashionAnnError(f"No browser could be started. Open {path} in one.")


@commands.add("reproduce", VERSION, help="train a version again from its manifest, outside the store, and compare")
def _reproduce(options: argparse.Namespace) -> None:
    from cli.reproduce import reproduce

    version = open_store(options).version(options.version)
    with tempfile.TemporaryDirectory(prefix="fashion-ann-reproduce-") as scratch:
        result = reproduce(version, artifacts_folder(options.artifacts_dir), Path(scratch))
    print_result(options, result, _reproduce_lines(result), sort_keys=True)
    if result["verdict"] == "not reproduced":
        raise NotReproduced(f"Version {version.number} was not reproduced: {result['reason']}.")


def _reproduce_lines(result: dict[str, Any]) -> Iterator[str]:
    weights, accuracy, paired = result["weights_sha256"], result["test_accuracy"], result["paired"]
    yield f"version {result['version']}: weights {'are identical' if result['identical'] else 'differ'}"
    yield f"  expected  {weights['expected']}, test accuracy {accuracy['expected']:.4f}"
    yield f"  actual    {weights['found']}, test accuracy {accuracy['found']:.4f}"
    if not result["identical"]:
        yield (
            f"  accuracy {accuracy['found'] - accuracy['expected']:+.4f}: {paired['fixed']} test rows fixed, "
            f"{paired['broken']} broken, p = {paired['p_value']:.3g}"
        )
    for line in result["differs"]:
        yield f"  changed since: {line}"
    yield f"  verdict   {result['verdict']}: {result['reason']}"


@commands.add(
    "compare",
    Argument("before", metavar="V", help="a number, or an alias such as champion"),
    Argument(
        "after", metavar="W", nargs="?", help="another number or alias; without it V is compared with the champion"
    ),
    Argument(
        "--output",
        type=path_argument,
        metavar="FILE.html",
        help="the page (default: comparisons/V-W.html in the artifacts folder, of another dataset below its name)",
    ),
    data_dir("folder of the test CSV, read if the prepared test images were removed"),
    help="compare two versions on the same test images: which W fixed and which it broke",
    description="Print counts, and each setting and part of the provenance that differs, also from the champion. Write "
    "the images to an HTML page. The test predictions stored with each version are used, so no model is loaded.",
    when_stopped="Nothing was written.",
)
def _compare(options: argparse.Namespace) -> None:
    from tasks.data.remote_folder import local_data_folder
    from tasks.registry.alias_log import CHAMPION
    from tasks.reports.comparison import compare, comparison_name, comparisons_folder, write_comparison
    from tasks.reports.versions_page import write_versions_page

    store, artifacts_dir = open_store(options), artifacts_folder(options.artifacts_dir)
    names = (CHAMPION, options.before) if options.after is None else (options.before, options.after)
    before, after = map(store.resolve, names)
    if options.output is None:
        output = comparisons_folder(artifacts_dir, options.dataset) / comparison_name(before, after)
    else:
        output = expanded(options.output)
        if output.suffix.lower() != ".html" or not output.parent.is_dir() or output.is_dir():
            raise WrongUsage(f"--output {output}: expected a file ending in .html in an existing folder.")
    data_home = local_data_folder(data_folder(options.data_dir), artifacts_dir)
    comparison = compare(store, artifacts_dir, data_home, before, after)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_comparison(comparison, output)
    write_versions_page(store)  # it links to the comparison
    missing = comparison.without_pictures
    result = {**comparison.figures, "output": output, "without_pictures": missing}
    print_result(options, result, [*_compare_lines(comparison.figures), f"  page  {output}"])
    if missing and not options.json:
        print(f"  {missing}", file=sys.stderr)


def _compare_lines(figures: dict[str, Any]) -> Iterator[str]:
    accuracy = figures["test_accuracy"]
    yield (
        f"version {figures['after']} against version {figures['before']}, on the same {figures['rows']:,} test images"
    )
    yield (
        f"  accuracy {accuracy['before']:.4f} -> {accuracy['after']:.4f} "
        f"({accuracy['after'] - accuracy['before']:+.4f}): {figures['fixed']} fixed, {figures['broken']} broken, "
        f"p = {figures['p_value']:.3g}"
    )
    for side in ("before", "after"):
        if rows := figures["rows_of_one_alone"][side]:
            yield f"  excluded: {rows:,} rows tested with version {figures[side]} only"
    for row in figures["per_class"]:
        yield (
            f"  {row['name']:<12} recall {row['recall_before']:.3f} -> {row['recall_after']:.3f}  "
            f"{row['fixed']} fixed, {row['broken']} broken"
        )
    for row in figures["robustness"]:
        yield f"  {row['disturbance']:<12} accuracy {_measured(row, '.4f')}"
    for row in figures["cost"]:
        yield f"  {row['quantity']}: {_measured(row, ',.4g' if row['quantity'].endswith(', s') else ',')}"
    for row in figures["differs"]:
        champion = f" (champion {figures['champion']}: {row['champion']})" if "champion" in row else ""
        yield f"  {row['what']}: {row['before']} -> {row['after']}{champion}"
    for sentence in figures["unknown"]:
        yield f"  {sentence}"
    if not figures["differs"] and not figures["unknown"]:
        yield "  the same: settings, topology, data, code, lock, packages, environment and device"


def _measured(row: dict[str, Any], form: str) -> str:
    return " -> ".join("not measured" if row[side] is None else f"{row[side]:{form}}" for side in ("before", "after"))


@commands.add(
    "promote",
    VERSION,
    _REASON,
    Argument(
        "--force", action="store_true", help="promote a version that its own verdict rejected, or without its shadow"
    ),
    Argument(
        "--minimum-shadow-rows",
        type=int,
        metavar="N",
        help="rows that the version must have answered as a shadow of the champion (default: its own promotion rule)",
    ),
    MLFLOW,
    help="make a version the champion",
    when_stopped=_CHECK_CHAMPION,
)
def _promote(options: argparse.Namespace) -> None:
    from tasks.registry.champion import promote

    store = open_store(options)
    least = read_value(ShadowRows | None, options.minimum_shadow_rows, "--minimum-shadow-rows")
    number = store.resolve(options.version)
    move = promote(store, number, options.reason, force=options.force, minimum_shadow_rows=least)
    _finish_move(options, store, move)


@commands.add(
    "rollback",
    _REASON,
    MLFLOW,
    help="restore the previous champion; run it again to go back further",
    when_stopped=_CHECK_CHAMPION,
)
def _rollback(options: argparse.Namespace) -> None:
    from tasks.registry.champion import rollback

    store = open_store(options)
    _finish_move(options, store, rollback(store, options.reason))


@commands.add(
    "alias",
    VERSION,
    Argument("name", metavar="NAME", help="letters, digits and dashes, such as staging; not champion"),
    _REASON,
    MLFLOW,
    help="point an alias other than champion at a version",
    description="Verify version V, then point the alias NAME at it. Every command that takes a version accepts NAME. "
    "`gc` keeps the version.",
    when_stopped="Run `fashion-ann versions` to see the current aliases.",
)
def _alias(options: argparse.Namespace) -> None:
    from tasks.registry.champion import set_alias

    store = open_store(options)
    _finish_move(options, store, set_alias(store, store.resolve(options.version), options.name, options.reason))


def _finish_move(options: argparse.Namespace, store: "ModelStore", move: "Move") -> None:
    """Print a move, send its event to the configured Prefect API, update MLflow, and write the page of all versions.

    Without an API, the next run sends the event.
    """
    from tasks.reports.mlflow_sync import update_mlflow
    from tasks.reports.versions_page import write_versions_page

    event = move.event
    write_versions_page(store)
    sent, problem = _send_events(store)
    update_mlflow(store)
    before = "none" if event.before is None else f"version {event.before}"
    if not options.json:
        for line in move.cleaned:
            print(line, file=sys.stderr)
    if problem is not None:
        print(runnable(f"The event is not sent yet. The next run sends it. {problem}"), file=sys.stderr)
    result = {**event.as_json(), "cleaned": move.cleaned, "event_sent": sent}
    print_result(options, result, [f"{event.alias}: {before} -> version {event.to}"], sort_keys=True)


def _send_events(store: "ModelStore") -> tuple[bool, "ApiProblem | None"]:
    """Return whether all events of the store were sent, and the problem of the configured API, if any."""
    from cli.server_process import api_problem, prefect_settings
    from tasks.registry.version_events import send_unsent

    if not prefect_settings().api.url:
        return False, None
    if (problem := api_problem()) is not None:
        return False, problem
    from tasks.runtime.prefect_events import send_events

    return send_unsent(store, send_events), None


@commands.add(
    "sign",
    VERSION,
    Argument(
        "--key",
        metavar="FILE",
        type=path_argument,
        help="PEM file with a private Ed25519 key and without a password (default: $FASHION_ANN_SIGNING_KEY)",
    ),
    help="sign the manifest of a version",
    description="Check every file of version V, then sign its manifest, which lists their digests. An earlier "
    "signature is replaced. With FASHION_ANN_VERIFY_KEY commands use only versions with a signature by that key.",
)
def _sign(options: argparse.Namespace) -> None:
    from tasks.registry.signatures import fingerprint, signing_key

    key = signing_key(options.key)
    if key is None:
        raise WrongUsage("Expected a private key, received none: give --key FILE, or set FASHION_ANN_SIGNING_KEY.")
    store = open_store(options)
    version = store.sign(store.resolve(options.version), key)
    signer = fingerprint(key.public_key())
    result = {
        "version": version.number,
        "manifest_sha256": version.manifest.manifest_sha256,
        "signature": version.folder / SIGNATURE_NAME,
        "signed_by": signer,
    }
    print_result(options, result, [f"version {version.number}: signed with the key {signer}"], sort_keys=True)


@commands.add(
    "verify",
    (
        Argument(
            "version", metavar="V", nargs="?", default="champion", help="a number or an alias (default: %(default)s)"
        ),
        Argument("--all", action="store_true", help="verify every version"),
    ),
    help="hash every file, load the model in a fresh process and repeat its golden predictions",
    writes=False,
)
def _verify(options: argparse.Namespace) -> None:
    from tasks.registry.verify import log_fault, verify_each

    store = open_store(options)
    results: list[dict[str, Any]] = []
    faults: list[str] = []
    for result in verify_each(store, store.numbers() if options.all else [store.resolve(options.version)]):
        if result.fault is not None:
            results.append({"version": result.version, "fault": result.fault})
            faults.append(result.fault)
            continue
        results.append(asdict(result))
        if not options.json:
            print(
                f"version {result.version}: {result.files} files intact; golden predictions match (largest difference "
                f"{result.golden_difference:.1g})" + (f"; signed by {result.signed_by}" if result.signed_by else "")
            )
    print_result(options, results, [] if results else [_empty(store)])
    if options.all and (fault := log_fault(store)) is not None:
        faults.append(fault)
    if faults:
        raise StoredArtifactError("\n".join(faults))


@commands.add(
    "gc",
    Argument(
        "--keep",
        type=int,
        default=5,
        metavar="N",
        help="number of newest versions to keep, at least 1 (default: %(default)s)",
    ),
    Argument("--dry-run", action="store_true", help="list what would be deleted, and delete nothing"),
    help="delete old versions and unreferenced artifacts",
    description="Keep versions with an alias, the champion's predecessor, the newest N, damaged versions, and "
    "the artifacts that all of these were built from. List and delete every other version, stage output and "
    "checkpoint, and temporary files of killed runs. A folder stays if it contains a file that no run wrote.",
    when_stopped="Each deletion is complete. Run it again to delete the rest.",
)
def _gc(options: argparse.Namespace) -> None:
    from tasks.registry.gc import collect, plan
    from tasks.registry.store import ModelStore
    from tasks.reports.mlflow_sync import update_mlflow
    from tasks.reports.versions_page import write_versions_page

    def list_removals(planned: "Plan") -> None:
        for entry in planned.removed:
            line = f"{entry.kind:<10}  {entry.bytes:>13,}  {entry.path}"
            print(line, file=sys.stderr if options.json else sys.stdout, flush=True)

    artifacts_dir = artifacts_folder(options.artifacts_dir)
    if options.dry_run:
        list_removals(result := plan(artifacts_dir, options.dataset, options.keep))
    else:
        result = collect(artifacts_dir, options.dataset, options.keep, on_plan=list_removals)
        write_versions_page(ModelStore.of(artifacts_dir, options.dataset))
        update_mlflow(open_store(options))  # it may have logged the promotion of a killed run
    deleted = "would delete" if options.dry_run else "deleted"
    kept = ", ".join(map(str, result.kept_versions)) or "none"
    total = f"{deleted} {len(result.removed)} items, {result.bytes:,} bytes; versions kept: {kept}"
    counts = {"bytes": result.bytes, "dry_run": options.dry_run}
    print_result(options, {**asdict(result), **counts}, [*result.notes, total])
