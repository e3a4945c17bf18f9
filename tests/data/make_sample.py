"""Make the committed sample from the published data: `python -m tests.data.make_sample DATA_DIR`.

Takes the first 100 train and 20 test images of every class, in file order. 1,000 rows are the contract's minimum for
train, so the tests run the pipeline without changes.
"""

import csv
import gzip
import sys
from collections import Counter
from pathlib import Path

from schemas.contract import FASHION_MNIST, SPLITS

PER_CLASS = {"train": 100, "test": 20}


def main(data_dir: Path) -> None:
    for split in SPLITS:
        name = FASHION_MNIST.csv_name(split)
        copied: Counter[str] = Counter()
        with (
            (data_dir / name).open(newline="", encoding="ascii") as source,
            # Without a time in the header the same rows give the same file.
            gzip.GzipFile(Path(__file__).parent / f"{name}.gz", "wb", mtime=0) as target,
        ):
            rows = csv.reader(source)
            target.write((",".join(next(rows)) + "\n").encode("ascii"))
            for row in rows:
                if copied[row[0]] < PER_CLASS[split]:
                    copied[row[0]] += 1
                    target.write((",".join(row) + "\n").encode("ascii"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
