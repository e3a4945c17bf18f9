"""The commands that run a flow or its core: `train` and `predict`."""

import argparse
from pathlib import Path
from typing import get_args

from cli.arguments import (
    AddParser,
    Terminated,
    add_command,
    add_config_flags,
    add_data_dir,
    read_bad_rows,
    read_config,
)
from schemas.contract import FASHION_MNIST


def add_run_commands(add_parser: AddParser) -> None:
    """Add `train` and `predict`."""
    _add_train(add_parser)
    _add_predict(add_parser)


def _add_train(add_parser: AddParser) -> None:
    from schemas.config import DeviceChoice

    parser = add_command(
        add_parser,
        "train",
        _train,
        help="run the whole pipeline in this process",
        description="Fetch, ingest, validate, prepare, train, evaluate and version. Completed stages are reused.",
        when_stopped="Nothing had started.",
    )
    add_data_dir(
        parser,
        f"folder of {FASHION_MNIST.csv_name('train')} and {FASHION_MNIST.csv_name('test')} (named for the dataset), "
        "plain or as .csv.gz, whole or in shards; published data is downloaded into a folder without CSVs",
    )
    parser.add_argument(
        "--bad-rows",
        default="0",
        metavar="N",
        help="bad rows allowed in each split, as a number or a share such as 0.5%%; they are quarantined in "
        "artifacts/quarantine/ (default: %(default)s)",
    )
    parser.add_argument(
        "--device",
        choices=get_args(DeviceChoice),
        default="auto",
        help="device that trains; auto: a GPU if one is usable, else the CPU; gpu: fail without a usable GPU "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="print no progress, only warnings, errors and the result on stdout"
    )
    add_config_flags(parser)


def _train(options: argparse.Namespace) -> None:
    from schemas.config import PromotionConfig, TrainingConfig, artifacts_folder, data_folder
    from schemas.layout import REPORT_NAME

    training, promotion = read_config(TrainingConfig, options), read_config(PromotionConfig, options)
    bad_rows = read_bad_rows(options.bad_rows)
    data_dir, artifacts_dir = data_folder(options.data_dir), artifacts_folder(options.artifacts_dir)
    from cli.embedded_server import run_training_flow
    from cli.terminal import Progress

    progress = Progress()
    try:
        version = run_training_flow(
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
    except (KeyboardInterrupt, Terminated):
        options.when_stopped = progress.summary_when_stopped()
        raise
    if options.json:
        print(version.model_dump_json(indent=2))
        return
    if version.created:
        print(f"created version {version.version}{' (now champion)' if version.champion else ''}")
    else:
        print(
            f"nothing to do: version {version.version} already covers this data, code and configuration"
            f"{' (current champion)' if version.champion else ''}"
        )
    print(f"  test accuracy {version.test_accuracy:.4f}, test loss {version.test_loss:.4f}")
    if version.created:
        print(f"  {version.verdict}")
    print(f"  model   {version.path}")
    print(f"  report  {version.path / REPORT_NAME}")


def _add_predict(add_parser: AddParser) -> None:
    parser = add_command(
        add_parser,
        "predict",
        _predict,
        help="predict the images of a CSV with a version",
        description="Write one row per image: class, class name and the probability of each class. Runs in this "
        "process without a Prefect server; deployments use the flow predict-fashion-mnist.",
        when_stopped="Nothing was written.",
    )
    parser.add_argument(
        "images",
        metavar="IMAGES",
        help="a CSV or .csv.gz as for train, with any number of rows; the column "
        f"{FASHION_MNIST.label_column} is optional and adds the accuracy",
    )
    parser.add_argument(
        "--output",
        metavar="OUT",
        required=True,
        help="file ending in .parquet or .csv; replaces an existing file, and is left unchanged by a failure",
    )
    parser.add_argument(
        "--version", metavar="V", default="champion", help="a number or an alias (default: %(default)s)"
    )


def _predict(options: argparse.Namespace) -> None:
    from schemas.config import artifacts_folder
    from tasks.registry.batch_prediction import predict_csv

    # The core, not the flow: starting a server takes longer than 10,000 predictions.
    predictions = predict_csv(
        Path(options.images),
        Path(options.output),
        options.version,
        options.dataset,
        artifacts_folder(options.artifacts_dir),
    )
    if options.json:
        print(predictions.model_dump_json(indent=2))
        return
    print(f"{predictions.rows} rows predicted by version {predictions.version}")
    if predictions.accuracy is not None:
        print(f"  accuracy {predictions.accuracy:.4f}")
    print(f"  output  {predictions.output}")
