"""The commands that write versions elsewhere: `export` and `mlflow sync`."""

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, get_args

from cli.arguments import MLFLOW, VERSION, Argument, Commands, counted, path_argument, print_result
from cli.model_store import open_store
from schemas.config import MLFLOW_VARIABLE, artifacts_folder, expanded, mlflow_address
from schemas.errors import StoredArtifactError, WrongUsage
from schemas.export import ExportFormat, Quantization

if TYPE_CHECKING:
    from schemas.export import ExportedModel

commands = Commands()

GROUP_HELP = {"mlflow": "send versions and aliases to an MLflow server"}


@commands.add(
    "export",
    VERSION,
    Argument(
        "--format",
        choices=get_args(ExportFormat),
        required=True,
        help="savedmodel: TensorFlow and TensorFlow Serving; onnx: ONNX Runtime; litert: a .tflite file; keras: a "
        ".keras file. onnx and litert need the extra export",
    ),
    Argument(
        "--output",
        type=path_argument,
        metavar="DIR",
        required=True,
        help="folder for DIR/MODEL/VERSION, such as DIR/fashion-mnist/7 or DIR/fashion-mnist-onnx/7",
    ),
    Argument(
        "--quantize",
        choices=get_args(Quantization),
        help="weights and activations in 8 bits, calibrated on train rows; onnx and litert only",
    ),
    help="export a version for another runtime, with proof that it predicts the same",
    description="Write version V for another runtime, with the normalization of pixels inside. The exported model is "
    "opened by that runtime in a fresh process and predicts all test rows. It is written if no probability differs by "
    "more than 0.00001 from the stored one and no class changes; else the exit status is 5. A quantized model is "
    "compared with the float one by McNemar's exact test; a worse one is rejected with status 4. export.json beside "
    "the model has digests, versions of the runtime and the measured figures. An existing export is proven again.",
    when_stopped="Nothing was written.",
)
def _export(options: argparse.Namespace) -> None:
    from tasks.registry.export import export_version

    version, artifacts_dir = open_store(options).version(options.version), artifacts_folder(options.artifacts_dir)
    exported = export_version(version, options.format, expanded(options.output), artifacts_dir, options.quantize)
    result = {**exported.record.model_dump(), **exported.model_dump(exclude={"record"})}
    print_result(options, result, _export_lines(exported))


def _export_lines(exported: "ExportedModel") -> Iterator[str]:
    record = exported.record
    done = "exported as" if exported.created else "was exported before, and is proven again as"
    yield f"version {record.version} {done} {record.format}{f', {record.quantize}' if record.quantize else ''}"
    yield (
        f"  largest difference of a probability {record.largest_difference:.2g}, {record.changed_classes} classes "
        f"changed, on all {record.rows:,} test rows"
    )
    costs = [("", record.cost)]
    if (quantized := record.quantized) is not None:
        yield (
            f"  accuracy {quantized.test_accuracy:.4f}: {quantized.fixed} fixed, {quantized.broken} broken, "
            f"p = {quantized.p_value:.3g}"
        )
        costs.append((" of the float model", quantized.float_cost))
    for name, cost in costs:
        one, thousand = cost.latency_ms["1"], cost.latency_ms["1000"]
        yield f"  {cost.bytes:,} bytes{name}; 1 row in {one:.3g} ms, 1,000 rows in {thousand:.3g} ms"
    yield f"  run by  {', '.join(f'{name} {version}' for name, version in record.runtime.items())}"
    yield f"  model   {exported.path}"
    yield f"  record  {exported.record_path}"


@commands.add(
    "mlflow sync",
    MLFLOW,
    help="add the versions and aliases that an MLflow server lacks",
    description="Add each version of the store that the MLflow server lacks, as a run and as a version of the "
    "registered model with the dataset's name. Set its aliases to those of the store. Runs and moves of aliases do the "
    "same while the server answers. Needs the extra mlflow.",
    writes=False,
    when_stopped="Versions that were added are complete. Run it again to add the rest.",
)
def _mlflow_sync(options: argparse.Namespace) -> None:
    from tasks.reports.mlflow_sync import synchronize

    if mlflow_address() is None:
        raise WrongUsage(
            f"Expected the address of an MLflow server, received none: give --mlflow URI, or set {MLFLOW_VARIABLE}."
        )
    store = open_store(options)
    state = synchronize(store)
    lines = [
        f"{state.address}: {counted(len(state.versions), 'version')} of {options.dataset}, {len(state.added)} added"
    ]
    lines += [f"  {alias}: version {number} in MLflow" for alias, number in state.aliases.items()]
    print_result(options, asdict(state), lines)
    if state.faults:
        raise StoredArtifactError("\n".join(state.faults))
