"""Ingest and judge the CSVs of a DATA folder into FOLDER. Prints JSON: the seconds, those of imports aside."""

import json
import sys
import time
from pathlib import Path

from schemas.contract import FASHION_MNIST, SPLITS
from tasks.expectations import fresh_context
from tasks.fetch import fetch_data
from tasks.ingest import ingest_csv
from tasks.validate import judge


def main(data_dir: str, folder: str) -> None:
    csvs = fetch_data(FASHION_MNIST, Path(data_dir))
    fresh_context()  # imports Great Expectations
    started = time.perf_counter()
    parquet = {split: Path(folder) / f"{split}.parquet" for split in SPLITS}
    for split in SPLITS:
        ingest_csv(csvs[split], parquet[split], Path(folder) / "bad.parquet", FASHION_MNIST)
    sketches = judge(parquet["train"], FASHION_MNIST, "train").sketches
    if sketches is None:
        raise RuntimeError("our suite took the real data for other data")
    judge(parquet["test"], FASHION_MNIST, "test", train=(sketches, parquet["train"]))
    print(json.dumps({"seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main(*sys.argv[1:])
