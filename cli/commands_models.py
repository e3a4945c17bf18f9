"""The commands for stored versions: list, inspect, compare, promote, verify, reproduce and collect garbage."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.arguments import AddParser, add_command, add_data_dir, print_json
from schemas.errors import FashionAnnError, NotReproduced, StoredArtifactError, VersionNotFound, WrongUsage

if TYPE_CHECKING:
    from tasks.registry.champion import Move
    from tasks.registry.store import ModelStore

_ASK_VERSIONS = "Run `fashion-ann versions` to see the current champion."


def add_model_commands(add_parser: AddParser) -> None:
    """Add the commands from `versions` to `gc`."""
    add_command(add_parser, "versions", _versions, help="list the model versions")
    show = add_command(add_parser, "show", _show, help="show the details of a version")
    why = add_command(
        add_parser, "why", _why, help="show why a version was promoted or not, and the cache key of each stage"
    )
    report = add_command(
        add_parser,
        "report",
        _report,
        help="print the path of a version's report after checking its digest",
        description="Print the path of the HTML report: verdict, metrics, most confident errors, data, provenance and "
        "the commands that reproduce the version.",
    )
    reproduce = add_command(
        add_parser,
        "reproduce",
        _reproduce,
        help="train a version again from its manifest, outside the store, and compare",
    )
    for parser in (show, why, report, reproduce):
        _add_version(parser)
    report.add_argument("--open", action="store_true", help="open it in the browser")
    _add_compare(add_parser)
    _add_promote(add_parser)
    _add_rollback(add_parser)
    _add_verify(add_parser)
    _add_gc(add_parser)


def _add_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("version", metavar="V", help="a number, or an alias such as champion")


def _store(options: argparse.Namespace) -> "ModelStore":
    from schemas.config import artifacts_folder
    from tasks.registry.store import ModelStore

    return ModelStore.of(artifacts_folder(options.artifacts_dir), options.dataset)


def _outcome(value: str) -> str:
    """Return the printed word for a stored outcome. The stored value "refused" is read by other programs."""
    return "rejected" if value == "refused" else value


def _versions(options: argparse.Namespace) -> None:
    store = _store(options)
    rows = [vars(row) for row in store.summaries()]
    if options.json:
        print_json(rows)
    elif not rows:
        print(f"No version in {store.root} yet. `fashion-ann train` creates one.")
    else:
        _print_versions(rows)
    # After the intact versions are listed, damaged ones decide the exit status.
    if damaged := [row["damaged"] for row in rows if row["damaged"]]:
        raise StoredArtifactError(" ".join(damaged))


def _print_versions(rows: list[dict[str, Any]]) -> None:
    print(f"{'version':>7}  {'created':<24}  {'accuracy':>8}  {'loss':>7}  aliases")
    for row in rows:
        if row["damaged"]:
            print(f"{row['version']:>7}  damaged{'':<36}  {', '.join(row['aliases'])}".rstrip())
            continue
        marks = [*row["aliases"], *(["rejected"] if row["outcome"] == "refused" else [])]
        print(
            f"{row['version']:>7}  {row['created']:<24}  {row['test_accuracy']:>8.4f}  {row['test_loss']:>7.4f}  "
            f"{', '.join(marks)}".rstrip()
        )


def _show(options: argparse.Namespace) -> None:
    from schemas.layout import METRICS_NAME

    store = _store(options)
    version = store.version(options.version)
    version.check()
    shown = {
        **version.manifest.as_json(),
        "metrics": json.loads(version.read(METRICS_NAME)),
        "aliases": store.aliases_of(version.number),
        "path": str(version.folder),
    }
    if options.json:
        print_json(shown, sort_keys=True)
        return
    aliases = f" ({', '.join(shown['aliases'])})" if shown["aliases"] else ""
    print(f"version {shown['version']}{aliases}, created {shown['created']}")
    print(f"  {shown['verdict']['reason']}")
    print(f"  test accuracy {shown['test_accuracy']:.4f}, test loss {shown['test_loss']:.4f}")
    device = shown["device"]
    several = f"{device['count']} x " if device["count"] > 1 else ""
    print(f"  trained on {several}{device['name']}, {shown['epochs_run']} epochs, {shown['training_seconds']:.1f} s")
    print("  " + ", ".join(f"{key} {value}" for key, value in shown["configuration"].items()))
    for row in shown["metrics"]["per_class"]:
        print(
            f"  {row['name']:<12} precision {row['precision']:.3f}  recall {row['recall']:.3f}  f1 {row['f1']:.3f}  "
            f"{row['rows']} rows"
        )
    for name, entry in shown["files"].items():
        print(f"  {entry['sha256']}  {entry['bytes']:>9}  {shown['path']}/{name}")


def _why(options: argparse.Namespace) -> None:
    from schemas.layout import VERDICT_NAME

    store = _store(options)
    version = store.version(options.version)
    version.check()
    verdict = json.loads(version.read(VERDICT_NAME))
    lineage = version.manifest.lineage
    events = [event for event in store.aliases.read() if version.number in (event.to, event.before)]
    if options.json:
        explained = {
            "version": version.number,
            "verdict": verdict,
            "events": [event.as_json() for event in events],
            "lineage": [entry.as_json() for entry in lineage],
        }
        print_json(explained, sort_keys=True)
        return
    print(f"version {version.number}: {_outcome(verdict['outcome'])}")
    print(f"  {verdict['reason']} (policy: {verdict['policy']})")
    for rule in verdict["rules"]:
        print(
            f"  {'passed' if rule['holds'] else 'FAILED'}  {rule['rule']}: {rule['figure']}, expected {rule['bound']}"
        )
    for entry in lineage:
        stage = f"{entry.stage} {entry.split or ''}".strip()
        print(f"  {'reused' if entry.reused else 'ran   '}  {stage:<15} cache key {entry.key}")
    for event in events:
        before = "none" if event.before is None else event.before
        print(f"  {event.when}  {event.alias} {before} -> {event.to}, {event.by}: {event.reason}")


def _report(options: argparse.Namespace) -> None:
    import webbrowser

    from schemas.layout import REPORT_NAME

    version = _store(options).version(options.version)
    path = version.path(REPORT_NAME)
    if options.json:
        print_json({"version": version.number, "report": str(path)})
    else:
        print(path)
    if options.open and not webbrowser.open(path.absolute().as_uri()):
        raise FashionAnnError(f"No browser could be started. Open {path} in one.")


def _add_compare(add_parser: AddParser) -> None:
    parser = add_command(
        add_parser,
        "compare",
        _compare,
        help="compare two versions on the same test images: which W fixed and which it broke",
        description="Print counts, and write the images to an HTML page. Uses the test predictions stored with each "
        "version, so no model is loaded.",
        when_stopped="Nothing was written.",
    )
    parser.add_argument("before", metavar="V", help="a number, or an alias such as champion")
    parser.add_argument("after", metavar="W", help="another number or alias")
    parser.add_argument(
        "--output", metavar="FILE.html", help="the page (default: comparisons/V-W.html in the artifacts folder)"
    )
    add_data_dir(parser, "folder of the test CSV, read if the prepared test images were removed")


def _compare(options: argparse.Namespace) -> None:
    from schemas.config import artifacts_folder, data_folder
    from schemas.layout import Artifacts
    from tasks.reports.comparison import compare, write_comparison

    store, artifacts_dir = _store(options), artifacts_folder(options.artifacts_dir)
    before, after = store.resolve(options.before), store.resolve(options.after)
    if options.output is None:
        output = Artifacts(artifacts_dir).comparisons / f"{before:04d}-{after:04d}.html"
    else:
        output = Path(options.output)
        if output.suffix.lower() != ".html" or not output.parent.is_dir() or output.is_dir():
            raise WrongUsage(f"--output {output}: expected a file ending in .html in an existing folder.")
    comparison = compare(store, artifacts_dir, data_folder(options.data_dir), before, after)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_comparison(comparison, output)
    missing = comparison.without_pictures
    if options.json:
        print_json({**comparison.figures, "output": str(output), "without_pictures": missing})
        return
    _print_comparison(comparison.figures, before, after)
    if missing:
        print(f"  {missing}", file=sys.stderr)
    print(f"  page  {output}")


def _print_comparison(figures: dict[str, Any], before: int, after: int) -> None:
    accuracy = figures["test_accuracy"]
    print(f"version {after} against version {before}, on the same {figures['rows']:,} test images")
    print(
        f"  accuracy {accuracy['before']:.4f} -> {accuracy['after']:.4f} "
        f"({accuracy['after'] - accuracy['before']:+.4f}): {figures['fixed']} fixed, {figures['broken']} broken, "
        f"p = {figures['p_value']:.3g}"
    )
    for side, version in (("before", before), ("after", after)):
        if rows := figures["rows_of_one_alone"][side]:
            print(f"  excluded: {rows:,} rows tested with version {version} only")
    for row in figures["per_class"]:
        print(
            f"  {row['name']:<12} recall {row['recall_before']:.3f} -> {row['recall_after']:.3f}  "
            f"{row['fixed']} fixed, {row['broken']} broken"
        )
    for row in figures["differs"]:
        print(f"  {row['what']}: {row['before']} -> {row['after']}")


def _add_promote(add_parser: AddParser) -> None:
    parser = add_command(
        add_parser, "promote", _promote, help="make a version the champion", when_stopped=_ASK_VERSIONS
    )
    _add_version(parser)
    _add_reason(parser)
    parser.add_argument("--force", action="store_true", help="promote a version that its own verdict rejected")


def _add_rollback(add_parser: AddParser) -> None:
    parser = add_command(
        add_parser,
        "rollback",
        _rollback,
        help="restore the previous champion; run it again to go back further",
        when_stopped=_ASK_VERSIONS,
    )
    _add_reason(parser)


def _add_reason(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reason", required=True, metavar="R", help="recorded in the alias log")


def _promote(options: argparse.Namespace) -> None:
    from tasks.registry.champion import promote

    store = _store(options)
    _print_move(options, promote(store, store.resolve(options.version), options.reason, force=options.force))


def _rollback(options: argparse.Namespace) -> None:
    from tasks.registry.champion import rollback

    _print_move(options, rollback(_store(options), options.reason))


def _print_move(options: argparse.Namespace, move: "Move") -> None:
    event = move.event
    if options.json:
        print_json({**event.as_json(), "cleaned": move.cleaned}, sort_keys=True)
        return
    for line in move.cleaned:
        print(line, file=sys.stderr)
    before = "none" if event.before is None else f"version {event.before}"
    print(f"champion: {before} -> version {event.to}")


def _add_verify(add_parser: AddParser) -> None:
    parser = add_command(
        add_parser,
        "verify",
        _verify,
        help="hash every file, load the model in a fresh process and repeat its golden predictions",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "version", metavar="V", nargs="?", default="champion", help="a number or an alias (default: %(default)s)"
    )
    which.add_argument("--all", action="store_true", help="verify every version")


def _verify(options: argparse.Namespace) -> None:
    from tasks.registry.verify import verify

    store = _store(options)
    results: list[dict[str, Any]] = []
    for version in store.numbers() if options.all else [store.resolve(options.version)]:
        try:
            stored = store.version(version)
            result = {"version": version, "path": str(stored.folder), "files": len(stored.manifest.files)}
            results.append({**result, "golden_difference": verify(stored), "fault": None})
        except VersionNotFound:
            if not options.all:
                raise
            continue  # removed by `gc` in the meantime
        except StoredArtifactError as error:
            results.append({"version": version, "fault": str(error)})
        if not options.json and results[-1]["fault"] is None:
            result = results[-1]
            print(
                f"version {version}: {result['files']} files intact; golden predictions match (largest difference "
                f"{result['golden_difference']:.1g})"
            )
    if options.json:
        print_json(results)
    faults = [result["fault"] for result in results if result["fault"] is not None]
    if options.all:
        try:
            store.history()
        except StoredArtifactError as error:
            faults.append(str(error))
    if faults:
        raise StoredArtifactError(" ".join(faults))


def _reproduce(options: argparse.Namespace) -> None:
    import tempfile

    from cli.reproduce import reproduce
    from schemas.config import PromotionConfig, artifacts_folder

    stored = _store(options).version(options.version)
    version = stored.number
    with tempfile.TemporaryDirectory(prefix="fashion-ann-reproduce-") as scratch:
        result = reproduce(stored, artifacts_folder(options.artifacts_dir), Path(scratch))
    if options.json:
        print_json(result, sort_keys=True)
    else:
        _print_reproduction(version, result)
    # The same seed on the same CPU gives the same bits. A p-value counts only if code, lock or device changed.
    if result["identical"]:
        return
    if not result["differs"]:
        raise NotReproduced(f"Version {version} was not reproduced: the weights differ, and nothing else changed.")
    if result["paired"]["p_value"] < PromotionConfig().significance:
        raise NotReproduced(f"Version {version} was not reproduced: the difference in accuracy is significant.")


def _print_reproduction(version: int, result: dict[str, Any]) -> None:
    weights, accuracy, paired = result["weights_sha256"], result["test_accuracy"], result["paired"]
    print(f"version {version}: weights {'are identical' if result['identical'] else 'differ'}")
    print(f"  expected  {weights['expected']}, test accuracy {accuracy['expected']:.4f}")
    print(f"  actual    {weights['found']}, test accuracy {accuracy['found']:.4f}")
    if not result["identical"]:
        print(
            f"  accuracy {accuracy['found'] - accuracy['expected']:+.4f}: {paired['fixed']} test rows fixed, "
            f"{paired['broken']} broken, p = {paired['p_value']:.3g}"
        )
    for line in result["differs"]:
        print(f"  changed since: {line}")


def _add_gc(add_parser: AddParser) -> None:
    parser = add_command(
        add_parser,
        "gc",
        _gc,
        help="delete old versions and unreferenced artifacts",
        description="Keep versions with an alias, the champion's predecessor, the newest N, damaged versions, and "
        "the artifacts that all of these were built from. Delete every other version, stage output and checkpoint, and "
        "temporary files of killed runs.",
        when_stopped="Each deletion is complete. Run it again to delete the rest.",
    )
    parser.add_argument(
        "--keep",
        type=int,
        default=5,
        metavar="N",
        help="number of newest versions to keep, at least 1 (default: %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="list what would be deleted, and delete nothing")


def _gc(options: argparse.Namespace) -> None:
    from schemas.config import artifacts_folder
    from tasks.registry.gc import collect, plan

    do = plan if options.dry_run else collect
    result = do(artifacts_folder(options.artifacts_dir), options.dataset, options.keep)
    if options.json:
        removed = [{"kind": entry.kind, "path": str(entry.path), "bytes": entry.bytes} for entry in result.removed]
        counts = {"kept_versions": result.kept_versions, "bytes": result.bytes, "dry_run": options.dry_run}
        print_json({"removed": removed, **counts, "notes": result.notes})
        return
    for entry in result.removed:
        print(f"{entry.kind:<10}  {entry.bytes:>13,}  {entry.path}")
    for note in result.notes:
        print(note)
    kept = ", ".join(map(str, result.kept_versions)) or "none"
    print(
        f"{'would delete' if options.dry_run else 'deleted'} {len(result.removed)} items, {result.bytes:,} bytes; "
        f"versions kept: {kept}"
    )
