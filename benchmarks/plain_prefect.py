"""A peer of the whole command, a plain Prefect flow: `python -m benchmarks.plain_prefect TRAIN TEST FOLDER`.

The stages and the network are those of `fashion-ann train`; the recipe is that of the plain script. Prints JSON:
test_accuracy, and the seconds of both validations.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from benchmarks.peers import plain_suite_accepts
from benchmarks.plain_script import plain_network
from schemas.contract import FASHION_MNIST

Arrays = tuple[npt.NDArray[np.floating], npt.NDArray[np.integer]]  # images (N, 784) in [0, 1], labels (N,)


# Without caching, because Prefect would hash every frame for its cache keys.
@task(cache_policy=NO_CACHE)
def ingest(csv: Path, parquet: Path) -> pd.DataFrame:
    frame = pd.read_csv(csv)
    frame.to_parquet(parquet)
    return frame


@task(cache_policy=NO_CACHE)
def validate(frame: pd.DataFrame) -> float:
    started = time.perf_counter()
    if not plain_suite_accepts(frame, FASHION_MNIST, len(frame)):
        raise ValueError("The suite rejected the data.")
    return time.perf_counter() - started


@task(cache_policy=NO_CACHE)
def prepare(frame: pd.DataFrame) -> Arrays:
    return frame.drop(columns="label").to_numpy("float32") / 255, frame["label"].to_numpy()


@task(cache_policy=NO_CACHE)
def train(data: Arrays) -> Any:
    model = plain_network()
    model.fit(*data, batch_size=32, epochs=10, verbose=2)
    return model


@task(cache_policy=NO_CACHE)
def evaluate(model: Any, data: Arrays) -> float:
    return float(model.evaluate(*data, verbose=2)[1])


@task(cache_policy=NO_CACHE)
def save(model: Any, path: Path) -> None:
    model.save(path)


@flow
def train_plainly(train_csv: Path, test_csv: Path, folder: Path) -> dict[str, float]:
    train_frame = ingest(train_csv, folder / "train.parquet")
    test_frame = ingest(test_csv, folder / "test.parquet")
    seconds = validate(train_frame) + validate(test_frame)
    model = train(prepare(train_frame))
    accuracy = evaluate(model, prepare(test_frame))
    save(model, folder / "model.keras")
    return {"test_accuracy": accuracy, "validate_seconds": seconds}


def main(train_csv: str, test_csv: str, folder: str) -> None:
    Path(folder).mkdir(parents=True)
    print(json.dumps(train_plainly(Path(train_csv), Path(test_csv), Path(folder))))


if __name__ == "__main__":
    main(*sys.argv[1:])
