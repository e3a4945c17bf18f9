"""The command line: `fashion-ann COMMAND`. Answers go to stdout, progress and errors to stderr.

Exit status: 0 done; 2 wrong usage; 3 the data broke the contract; 4 the new version was refused; 5 a stored artifact
failed its digest; 130 interrupted; 143 terminated; 1 anything else.
"""

import argparse
import gc
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from schemas.contract import FASHION_MNIST, DatasetName
from schemas.errors import FashionAnnError, StoredArtifactError, VersionNotFound, WrongUsage

if TYPE_CHECKING:
    from cli.services import Status
    from schemas.config import BadRows
    from tasks.registry.champion import Move
    from tasks.registry.store import ModelStore

_OBJECTS_BETWEEN_COLLECTIONS = 100_000


class _Terminated(BaseException):
    """SIGTERM, as KeyboardInterrupt is SIGINT: no handler of errors on the way takes it for one."""


def _terminate(number: int, frame: object) -> NoReturn:
    raise _Terminated


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    # Half a million objects come with the imports, and stay. Looking for garbage among them each 700 objects, as is
    # the default, costs a fifth of the start, and at the exit two seconds.
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    # Nothing about a run leaves the machine. The server has a setting for that, Prefect's client this variable alone.
    os.environ.setdefault("DO_NOT_TRACK", "1")
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        options.run(options)
    except (KeyboardInterrupt, _Terminated) as stopped:
        # A second one would find us ending already.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        word, status = ("Terminated", 143) if isinstance(stopped, _Terminated) else ("Interrupted", 130)
        print(f"{word}. {options.when_stopped}", file=sys.stderr)
    except BrokenPipeError:
        # Whoever read the answer has seen enough of it; Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except FashionAnnError as error:
        status = _tell(options, error, str(error), error.exit_status)
    except OSError as error:
        status = _tell(options, error, f"{error.filename or 'The system'}: {error.strerror or error}.", 1)
    except Exception as error:
        status = _tell(options, error, f"Unexpected {type(error).__name__}: {error}", 1)
    else:
        status = 0
    gc.freeze()
    sys.exit(status)


def _tell(options: argparse.Namespace, error: Exception, message: str, status: int) -> int:
    if options.debug:
        traceback.print_exception(error)
    print(f"fashion-ann {options.command}: {message}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fashion-ann",
        description="From image CSVs to a validated, trained, evaluated and versioned Keras model.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--artifacts-dir",
        metavar="D",
        help="what runs write (default: $FASHION_ANN_ARTIFACTS_DIR, then artifacts/ of the checkout)",
    )
    of_dataset = argparse.ArgumentParser(add_help=False)
    of_dataset.add_argument(
        "--dataset",
        choices=get_args(DatasetName),
        default=FASHION_MNIST.name,
        help="whose contract and store (default: %(default)s)",
    )
    common.add_argument("--json", action="store_true", help="print JSON, for programs")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")

    # A flag is spelled out: an abbreviation would change its meaning on the day that another flag begins the same.
    shared: dict[str, Any] = {"parents": [common], "allow_abbrev": False}
    of_one: dict[str, Any] = {"parents": [common, of_dataset], "allow_abbrev": False}
    of_version = argparse.ArgumentParser(add_help=False)
    of_version.add_argument("version", metavar="V", help="a number, or an alias such as champion")
    about_one: dict[str, Any] = {"parents": [common, of_dataset, of_version], "allow_abbrev": False}
    common.set_defaults(when_stopped="Nothing was changed.")

    train = commands.add_parser(
        "train",
        **of_one,
        help="run the whole pipeline in this process",
        description="Fetch, ingest, validate, prepare, train, evaluate, version. What is done already is not repeated.",
    )
    train.add_argument(
        "--data-dir",
        metavar="D",
        help=f"the folder of {FASHION_MNIST.csv_name('train')} and {FASHION_MNIST.csv_name('test')}, named for the "
        "dataset, or their .csv.gz, or shards of them (default: $FASHION_ANN_DATA_DIR, then data/ of the checkout); "
        "where there are none, the published data is fetched",
    )
    train.add_argument(
        "--bad-rows",
        default="0",
        metavar="N",
        help="rows of a split that may be bad, or a share of them such as 0.5%%; they are set aside in "
        "artifacts/quarantine/ (default: %(default)s)",
    )
    from schemas.config import DeviceChoice

    train.add_argument(
        "--device",
        choices=get_args(DeviceChoice),
        default="auto",
        help="what training runs on; auto: a GPU where one can be used, else the CPU; gpu: a GPU or nothing "
        "(default: %(default)s)",
    )
    train.add_argument(
        "--quiet",
        action="store_true",
        help="no live view and no line a stage: warnings and errors alone, and the answer on stdout",
    )
    _add_training_flags(train)
    _add_promotion_flags(train)
    train.set_defaults(run=_train, when_stopped="Nothing was begun yet.")

    predict = commands.add_parser(
        "predict",
        **of_one,
        help="predict the images of a CSV with a version",
        description="Class, its name and the probability of each class, a row of OUT for a row of IMAGES. In this "
        "process, without a Prefect server; the flow predict-fashion-mnist does the same for deployments.",
    )
    predict.add_argument(
        "images",
        metavar="IMAGES",
        help="a CSV, or .csv.gz, as for train, of any number of rows; the column "
        f"{FASHION_MNIST.label_column} may be left out, and gives the accuracy if it is there",
    )
    predict.add_argument(
        "--output",
        metavar="OUT",
        required=True,
        help="ends in .parquet or .csv; written whole or not at all, replaces a file that is there",
    )
    predict.add_argument(
        "--version", metavar="V", default="champion", help="a number, or an alias (default: %(default)s)"
    )
    predict.set_defaults(run=_predict, when_stopped="Nothing was written.")

    contract = commands.add_parser(
        "contract", **of_one, help="what the data of a dataset owes", description="As docs/contract.md has it."
    )
    contract.set_defaults(run=_contract)

    versions = commands.add_parser("versions", **of_one, help="list the model versions")
    versions.set_defaults(run=_versions)

    show = commands.add_parser("show", **about_one, help="show one version, whole")
    show.set_defaults(run=_show)

    why = commands.add_parser("why", **about_one, help="why a version was promoted or not, and what each stage hung on")
    why.set_defaults(run=_why)

    report = commands.add_parser(
        "report",
        **about_one,
        help="where the report of a version is, once it was checked",
        description="A page of one file: verdict, figures, mistakes as pictures, data, how to make the version again.",
    )
    report.add_argument("--open", action="store_true", help="open it in the browser")
    report.set_defaults(run=_report)

    compare = commands.add_parser(
        "compare",
        **of_one,
        help="two versions on the same test images: which of them W fixed and which it broke",
        description="In figures here, as pictures in an HTML page. Nothing is predicted again: what each version said "
        "of each test image is stored with it.",
    )
    compare.add_argument("before", metavar="V", help="a number, or an alias such as champion")
    compare.add_argument("after", metavar="W", help="another one")
    compare.add_argument(
        "--output", metavar="FILE.html", help="the page (default: comparisons/V-W.html in the artifacts folder)"
    )
    compare.add_argument(
        "--data-dir",
        metavar="D",
        help="where the test CSV is, for pictures whose prepared arrays are gone (default: $FASHION_ANN_DATA_DIR, then "
        "data/ of the checkout)",
    )
    compare.set_defaults(run=_compare, when_stopped="Nothing was written.")

    promote = commands.add_parser("promote", **of_one, help="make a version champion")
    promote.add_argument("version", metavar="V")
    promote.add_argument("--reason", required=True, metavar="R", help="kept in the log of aliases")
    promote.add_argument("--force", action="store_true", help="even a version that its own verdict refused")
    promote.set_defaults(run=_promote, when_stopped="`fashion-ann versions` says who is champion now.")

    rollback = commands.add_parser("rollback", **of_one, help="give the place back to the champion before")
    rollback.add_argument("--reason", required=True, metavar="R", help="kept in the log of aliases")
    rollback.set_defaults(run=_rollback, when_stopped="`fashion-ann versions` says who is champion now.")

    verify = commands.add_parser(
        "verify", **of_one, help="hash every file again, load in a fresh process, repeat the golden predictions"
    )
    which = verify.add_mutually_exclusive_group()
    which.add_argument("version", metavar="V", nargs="?", default="champion", help="default: champion")
    which.add_argument("--all", action="store_true", help="every version")
    verify.set_defaults(run=_verify)

    reproduce = commands.add_parser(
        "reproduce", **of_one, help="train a version again from its manifest, beside the store, and compare"
    )
    reproduce.add_argument("version", metavar="V")
    reproduce.set_defaults(run=_reproduce)

    gc = commands.add_parser(
        "gc",
        **of_one,
        help="remove old versions, and outputs that no version was made from",
        description="Versions that an alias names, the champion's predecessor, the newest N and damaged ones stay, "
        "with all that they were made from. The rest goes: versions, outputs of stages, checkpoints, leftovers.",
    )
    gc.add_argument(
        "--keep", type=int, default=5, metavar="N", help="newest versions that stay, 1 or more (default: 5)"
    )
    gc.add_argument("--dry-run", action="store_true", help="say what would go, and remove nothing")
    gc.set_defaults(run=_gc, when_stopped="What was removed is gone whole; run it again for the rest.")

    deploy = commands.add_parser(
        "deploy",
        **shared,
        help="put the pools, deployments and automations of prefect.yaml on the Prefect API",
        description="Work pools, deployments with their schedules and triggers, and automations, on the API of "
        "PREFECT_API_URL. Again, it changes nothing. FASHION_ANN_NOTIFY: a URL, or TYPE/NAME of a block, that failures "
        "are told to.",
    )
    deploy.set_defaults(run=_deploy, when_stopped="Not everything may be deployed; the same command does the rest.")

    doctor = commands.add_parser(
        "doctor",
        **of_one,
        help="check Python, lock, GPU, Prefect, pools, disk, data and store",
        description="Check what a run needs, a line each, and say what to do about what is broken. Changes nothing. "
        "Exit status 1 if something is broken.",
    )
    doctor.add_argument(
        "--data-dir", metavar="D", help="the folder of the CSVs (default: $FASHION_ANN_DATA_DIR, then data/)"
    )
    doctor.set_defaults(run=_doctor)

    up = commands.add_parser(
        "up",
        **shared,
        help="start a Prefect server and a worker for each pool on this machine, and deploy to it",
        description="A server on 127.0.0.1, pools, deployments, automations, one worker each. What runs already is "
        "left as it is, so it may be repeated. They go on when this command and its terminal end.",
    )
    up.set_defaults(
        run=_up, when_stopped="What was started is kept: `fashion-ann up` goes on, `fashion-ann down` ends it."
    )

    down = commands.add_parser(
        "down",
        **shared,
        help="stop what up started",
        description="Flow runs that go on are told to end and become crashed; then the workers, then the server. "
        "History, schedules, results and logs stay, and `fashion-ann up` finds them again.",
    )
    down.set_defaults(run=_down, when_stopped="Repeat it to stop the rest.")

    status = commands.add_parser(
        "status",
        **shared,
        help="what of up runs",
        description="A line for each service. Exit status 1 if one does not run. Changes nothing.",
    )
    status.set_defaults(run=_status)
    return parser


# Flags of `train` that are keys of TrainingConfig, with the types they are read as.
_TRAINING_FLAGS: dict[str, type] = {
    "epochs": int,
    "batch_size": int,
    "learning_rate": float,
    "weight_decay": float,
    "dropout": float,
    "validation_size": int,
    "early_stopping": int,
    "seed": int,
}


def _add_training_flags(parser: argparse.ArgumentParser) -> None:
    from schemas.config import TrainingConfig

    for key, field in TrainingConfig.model_fields.items():
        parser.add_argument(
            _flag(key),
            type=_TRAINING_FLAGS[key],
            metavar="N" if _TRAINING_FLAGS[key] is int else "X",
            help=f"{field.description} (default: {field.default})",
        )


def _add_promotion_flags(parser: argparse.ArgumentParser) -> None:
    from schemas.config import PromotionConfig

    for key, field in PromotionConfig.model_fields.items():
        read_as = {"choices": get_args(field.annotation)} if key == "policy" else {"type": float, "metavar": "X"}
        parser.add_argument(
            _PROMOTION_FLAGS[key], dest=key, help=f"{field.description} (default: {field.default})", **read_as
        )


# Of `train`, for the keys of PromotionConfig: beside the recipe's flags each has to say what it is about.
_PROMOTION_FLAGS = {
    "policy": "--promotion-policy",
    "minimum_accuracy": "--minimum-accuracy",
    "minimum_recall": "--minimum-recall",
    "significance": "--significance",
}


def _flag(key: str) -> str:
    if key in _PROMOTION_FLAGS:
        return _PROMOTION_FLAGS[key]
    return "--" + key.replace("_", "-")


def _config(model: Any, options: argparse.Namespace) -> Any:
    """A model of schemas/config.py from the flags that were given."""
    from pydantic import ValidationError

    given = {key: getattr(options, key) for key in model.model_fields if getattr(options, key) is not None}
    try:
        return model(**given)
    except ValidationError as error:
        faults = [
            f"{_flag(str(fault['loc'][0]))}: {fault['msg']}, received {fault['input']}" for fault in error.errors()
        ]
        raise WrongUsage("; ".join(faults) + ".") from error


def _bad_rows(text: str) -> "BadRows":
    from pydantic import TypeAdapter, ValidationError

    from schemas.config import BadRows

    try:
        budget: BadRows = TypeAdapter(BadRows).validate_python(text)
    except ValidationError as error:
        raise WrongUsage(
            f"--bad-rows: a number of rows such as 20, or a share such as 0.5%, was expected, received {text!r}."
        ) from error
    return budget


def _train(options: argparse.Namespace) -> None:
    from schemas.config import PromotionConfig, TrainingConfig, artifacts_folder, data_folder

    training, promotion = _config(TrainingConfig, options), _config(PromotionConfig, options)
    bad_rows = _bad_rows(options.bad_rows)
    from cli.prefect_run import run_training_flow
    from cli.terminal import Progress

    data_dir, artifacts_dir = data_folder(options.data_dir), artifacts_folder(options.artifacts_dir)
    progress = Progress()
    try:
        made = run_training_flow(
            options.dataset,
            data_dir,
            artifacts_dir,
            training,
            promotion,
            options.device,
            bad_rows,
            progress,
            quiet=options.quiet,
        )
    except (KeyboardInterrupt, _Terminated):
        options.when_stopped = progress.kept()
        raise
    if options.json:
        print(made.model_dump_json(indent=2))
        return
    what = "made" if made.created else "is unchanged: nothing new to train on"
    print(f"version {made.version} {what}{', champion' if made.champion else ''}")
    print(f"  test accuracy {made.test_accuracy:.4f}, test loss {made.test_loss:.4f}")
    if made.created:
        print(f"  {made.verdict}")
    print(f"  model   {made.path}")
    print(f"  report  {made.path / 'report.html'}")


def _predict(options: argparse.Namespace) -> None:
    from schemas.config import artifacts_folder
    from tasks.registry.batch_prediction import predict_csv

    # The core and not the flow: a server would take longer than 10,000 predictions, and record nothing that the
    # Parquet does not say.
    made = predict_csv(
        Path(options.images),
        Path(options.output),
        options.version,
        options.dataset,
        artifacts_folder(options.artifacts_dir),
    )
    if options.json:
        print(made.model_dump_json(indent=2))
        return
    print(f"{made.rows} rows predicted by version {made.version}")
    if made.accuracy is not None:
        print(f"  accuracy {made.accuracy:.4f}")
    print(f"  output  {made.output}")


def _contract(options: argparse.Namespace) -> None:
    from cli.contract_page import contract_json, contract_text
    from schemas.contract import contract_of

    contract = contract_of(options.dataset)
    print(json.dumps(contract_json(contract), indent=2) if options.json else contract_text(contract).rstrip())


def _store(options: argparse.Namespace) -> "ModelStore":
    from schemas.config import artifacts_folder
    from tasks.registry.store import ModelStore

    return ModelStore.of(artifacts_folder(options.artifacts_dir), options.dataset)


def _versions(options: argparse.Namespace) -> None:
    store = _store(options)
    rows = [vars(row) for row in store.summaries()]
    if options.json:
        print(json.dumps(rows, indent=2))
        _raise_damaged(rows)
        return
    if not rows:
        print(f"No version in {store.root} yet. `fashion-ann train` makes one.")
        return
    print(f"{'version':>7}  {'created':<24}  {'accuracy':>8}  {'loss':>7}  aliases")
    for row in rows:
        if row["damaged"]:
            print(f"{row['version']:>7}  damaged{'':<36}  {', '.join(row['aliases'])}".rstrip())
            continue
        print(
            f"{row['version']:>7}  {row['created']:<24}  {row['test_accuracy']:>8.4f}  {row['test_loss']:>7.4f}  "
            f"{', '.join([*row['aliases'], *(['refused'] if row['outcome'] == 'refused' else [])])}".rstrip()
        )
    _raise_damaged(rows)


def _raise_damaged(rows: list[dict[str, Any]]) -> None:
    """What is whole was told; what is not decides the exit status."""
    if damaged := [row["damaged"] for row in rows if row["damaged"]]:
        raise StoredArtifactError(" ".join(damaged))


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
        print(json.dumps(shown, indent=2, sort_keys=True))
        return
    aliases = f" ({', '.join(shown['aliases'])})" if shown["aliases"] else ""
    print(f"version {shown['version']}{aliases}, made {shown['created']}")
    print(f"  {shown['verdict']['reason']}")
    print(f"  test accuracy {shown['test_accuracy']:.4f}, test loss {shown['test_loss']:.4f}")
    device = shown["device"]
    several = f"{device['count']} x " if device["count"] > 1 else ""
    print(f"  trained on {several}{device['name']}, {shown['epochs_run']} epochs, {shown['training_seconds']:.1f} s")
    print("  " + ", ".join(f"{key} {value}" for key, value in shown["configuration"].items()))
    for row in shown["metrics"]["per_class"]:
        print(
            f"  {row['name']:<12} precision {row['precision']:.3f}  recall {row['recall']:.3f}  f1 {row['f1']:.3f}  "
            f"of {row['rows']}"
        )
    for name, entry in shown["files"].items():
        print(f"  {entry['sha256']}  {entry['bytes']:>9}  {shown['path']}/{name}")


def _why(options: argparse.Namespace) -> None:
    from schemas.layout import VERDICT_NAME

    store = _store(options)
    stored = store.version(options.version)
    stored.check()
    version, lineage = stored.number, stored.manifest.lineage
    verdict = json.loads(stored.read(VERDICT_NAME))
    events = [event for event in store.aliases.read() if version in (event.to, event.before)]
    if options.json:
        answer = {
            "version": version,
            "verdict": verdict,
            "events": [event.as_json() for event in events],
            "lineage": [entry.as_json() for entry in lineage],
        }
        print(json.dumps(answer, indent=2, sort_keys=True))
        return
    print(f"version {version}: {verdict['outcome']}")
    print(f"  {verdict['reason']} (policy: {verdict['policy']})")
    for rule in verdict["rules"]:
        print(
            f"  {'holds ' if rule['holds'] else 'FAILED'}  {rule['rule']}: {rule['figure']}, expected {rule['bound']}"
        )
    for entry in lineage:
        stage = f"{entry.stage} {entry.split or ''}".strip()
        print(f"  {'reused' if entry.reused else 'ran   '}  {stage:<15} hung on {entry.key}")
    for event in events:
        before = "none" if event.before is None else event.before
        print(f"  {event.when}  {event.alias} {before} -> {event.to}, {event.by}: {event.reason}")


def _report(options: argparse.Namespace) -> None:
    import webbrowser

    from schemas.errors import FashionAnnError
    from schemas.layout import REPORT_NAME

    version = _store(options).version(options.version)
    path = version.path(REPORT_NAME)
    print(json.dumps({"version": version.number, "report": str(path)}, indent=2) if options.json else path)
    if options.open and not webbrowser.open(path.absolute().as_uri()):
        raise FashionAnnError(f"No browser could be started here. Open {path} in one.")


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
            raise WrongUsage(f"--output {output}: a file ending in .html, in a folder that is there, was expected.")
    done = compare(store, artifacts_dir, data_folder(options.data_dir), before, after)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_comparison(done, output)
    found = done.figures
    if options.json:
        missing = done.without_pictures
        print(json.dumps({**found, "output": str(output), "without_pictures": missing}, indent=2))
        return
    accuracy = found["test_accuracy"]
    print(f"version {after} against version {before}, on the same {found['rows']} test images")
    print(
        f"  accuracy {accuracy['before']:.4f} -> {accuracy['after']:.4f} "
        f"({accuracy['after'] - accuracy['before']:+.4f}): {found['fixed']} fixed, {found['broken']} broken, "
        f"p = {found['p_value']:.3g}"
    )
    if alone := {side: rows for side, rows in found["rows_of_one_alone"].items() if rows}:
        print(f"  left out, tested by one alone: {', '.join(f'{rows} rows of {side}' for side, rows in alone.items())}")
    for row in found["per_class"]:
        print(
            f"  {row['name']:<12} recall {row['recall_before']:.3f} -> {row['recall_after']:.3f}  "
            f"{row['fixed']} fixed, {row['broken']} broken"
        )
    for row in found["differs"]:
        print(f"  {row['what']}: {row['before']} -> {row['after']}")
    if done.without_pictures:
        print(f"  {done.without_pictures}", file=sys.stderr)
    print(f"  page  {output}")


def _promote(options: argparse.Namespace) -> None:
    from tasks.registry.champion import promote

    store = _store(options)
    _moved(options, promote(store, store.resolve(options.version), options.reason, force=options.force))


def _rollback(options: argparse.Namespace) -> None:
    from tasks.registry.champion import rollback

    _moved(options, rollback(_store(options), options.reason))


def _moved(options: argparse.Namespace, move: "Move") -> None:
    event = move.event
    if options.json:
        print(json.dumps({**event.as_json(), "cleaned": move.cleaned}, indent=2, sort_keys=True))
        return
    for line in move.cleaned:
        print(line, file=sys.stderr)
    before = "none" if event.before is None else f"version {event.before}"
    print(f"champion: {before} -> version {event.to}")


def _verify(options: argparse.Namespace) -> None:
    from tasks.registry.verify import verify

    store = _store(options)
    answers: list[dict[str, Any]] = []
    for version in store.numbers() if options.all else [store.resolve(options.version)]:
        try:
            stored = store.version(version)
            difference = verify(stored)
            files = len(stored.manifest.files)
            answers.append(
                {"version": version, "path": str(stored.folder), "files": files, "golden_difference": difference}
                | {"fault": None}
            )
        except VersionNotFound:
            if not options.all:
                raise
            continue  # `gc` took it meanwhile
        except StoredArtifactError as error:
            answers.append({"version": version, "fault": str(error)})
        if not options.json and answers[-1]["fault"] is None:
            done = answers[-1]
            print(
                f"version {version}: {done['files']} files as they were written; golden predictions repeated, largest "
                f"difference {done['golden_difference']:.1g}"
            )
    if options.json:
        print(json.dumps(answers, indent=2))
    faults = [answer["fault"] for answer in answers if answer["fault"] is not None]
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
    from schemas.errors import NotReproduced

    stored = _store(options).version(options.version)
    version = stored.number
    with tempfile.TemporaryDirectory(prefix="fashion-ann-reproduce-") as scratch:
        found = reproduce(stored, artifacts_folder(options.artifacts_dir), Path(scratch))
    paired = found["paired"]
    # 0.05 as in a promotion: a difference that two equally good models would show one time in twenty.
    # Where nothing differs but the weights, noise explains nothing: the same seed on the same CPU gives the same bits.
    alike = found["identical"] or (found["differs"] and paired["p_value"] >= PromotionConfig().significance)
    if options.json:
        print(json.dumps(found, indent=2, sort_keys=True))
    else:
        weights, accuracy = found["weights_sha256"], found["test_accuracy"]
        print(f"version {version}: weights {'are identical' if found['identical'] else 'differ'}")
        print(f"  expected {weights['expected']}, test accuracy {accuracy['expected']:.4f}")
        print(f"  found    {weights['found']}, test accuracy {accuracy['found']:.4f}")
        if not found["identical"]:
            gap = accuracy["found"] - accuracy["expected"]
            print(
                f"  accuracy {gap:+.4f}: {paired['fixed']} test rows fixed, {paired['broken']} broken, "
                f"p = {paired['p_value']:.3g}"
            )
        for line in found["differs"]:
            print(f"  not as it was: {line}")
    if not alike:
        why = (
            "the difference in accuracy is no noise"
            if found["differs"]
            else "the weights differ, and nothing else does"
        )
        raise NotReproduced(f"Version {version} was not reproduced: {why}.")


def _gc(options: argparse.Namespace) -> None:
    from schemas.config import artifacts_folder
    from tasks.registry.gc import collect, plan

    do = plan if options.dry_run else collect
    done = do(artifacts_folder(options.artifacts_dir), options.dataset, options.keep)
    if options.json:
        removed = [{"kind": gone.kind, "path": str(gone.path), "bytes": gone.bytes} for gone in done.removed]
        answer = {"removed": removed, "kept_versions": done.kept_versions, "bytes": done.bytes}
        print(json.dumps({**answer, "dry_run": options.dry_run, "notes": done.notes}, indent=2))
        return
    for gone in done.removed:
        print(f"{gone.kind:<10}  {gone.bytes:>13,}  {gone.path}")
    for note in done.notes:
        print(note)
    stay = ", ".join(map(str, done.kept_versions)) or "none"
    print(
        f"{'would remove' if options.dry_run else 'removed'} {len(done.removed)} things, {done.bytes:,} bytes; "
        f"versions that stay: {stay}"
    )


def _deploy(options: argparse.Namespace) -> None:
    from cli.deploy import deploy_all

    deploy_all()
    if options.json:
        print(json.dumps({"deployed": True}))
        return
    print("pools, deployments and automations are as prefect.yaml and cli/automations.py say")


def _doctor(options: argparse.Namespace) -> None:
    from cli.doctor import Unwell, examine
    from schemas.config import artifacts_folder, data_folder

    checks = examine(artifacts_folder(options.artifacts_dir), data_folder(options.data_dir), options.dataset)
    if options.json:
        print(json.dumps([vars(check) for check in checks], indent=2))
    else:
        for check in checks:
            print(f"{ {True: 'ok', False: 'BROKEN', None: '-'}[check.ok]:<6}  {check.name:<7}  {check.says}")
            if check.ok is False:
                print(f"{'':>17}{check.cure}")
    if broken := [check.name for check in checks if check.ok is False]:
        raise Unwell(f"{', '.join(broken)} broken: what to do stands with each above.")


def _up(options: argparse.Namespace) -> None:
    from cli.services import up
    from schemas.config import artifacts_folder

    found = up(artifacts_folder(options.artifacts_dir))
    _tell_services(options, found)
    if not options.json:
        print("  prefect deployment run 'train-fashion-mnist/on-demand' --watch")


def _down(options: argparse.Namespace) -> None:
    from cli.services import down
    from schemas.config import artifacts_folder

    stopped = down(artifacts_folder(options.artifacts_dir))
    if options.json:
        print(json.dumps({"stopped": stopped}, indent=2))
        return
    print(f"stopped: {', '.join(stopped)}" if stopped else "Nothing was running.")


def _status(options: argparse.Namespace) -> None:
    from cli.services import NotRunning, status
    from schemas.config import artifacts_folder

    found = status(artifacts_folder(options.artifacts_dir))
    _tell_services(options, found)
    if missing := [service.name for service in found.services if not service.running]:
        raise NotRunning(f"{', '.join(missing)} not running: `fashion-ann up` starts what is missing.")


def _tell_services(options: argparse.Namespace, found: "Status") -> None:
    from cli.services import as_json

    if options.json:
        print(json.dumps(as_json(found), indent=2))
        return
    for service in found.services:
        pid = "" if service.pid is None else f"process {service.pid}"
        print(f"{service.name:<11}  {service.says:<11}  {pid:<15}  {service.log}".rstrip())
    if found.ui is not None:
        print(f"UI    {found.ui}")
    print(f"logs  {found.logs}")
    print(found.note)


if __name__ == "__main__":
    main()
