"""Run the stages as plain functions, without a Prefect engine or server.

`python -m benchmarks.stages DATA_DIR ARTIFACTS_DIR SEED` prints JSON: test_accuracy and the seconds to import Prefect,
which the modules of the stages need.
"""

import json
import sys
import time
from pathlib import Path


def main(data_dir: str, artifacts_dir: str, seed: str) -> None:
    started = time.perf_counter()
    from prefect import Flow, Task

    import_seconds = time.perf_counter() - started
    from flows import fit_model, train_fashion_mnist
    from schemas.config import TrainingConfig
    from schemas.references import ModelVersion

    for module in (fit_model, train_fashion_mnist):
        for name, value in list(vars(module).items()):
            if isinstance(value, Flow | Task):
                setattr(module, name, value.fn)
    version = train_fashion_mnist.train_fashion_mnist(
        data_dir=Path(data_dir), artifacts_dir=Path(artifacts_dir), training=TrainingConfig(seed=int(seed))
    )
    if not isinstance(version, ModelVersion):
        raise TypeError(f"Expected a new version, received {version!r}.")
    print(json.dumps({"test_accuracy": version.test_accuracy, "import_seconds": import_seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
