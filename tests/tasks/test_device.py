import subprocess
import sys

import numpy as np

from schemas.config import TrainingConfig
from tasks.device import feed, set_up_backend
from tasks.train import row_batches


def test_the_backend_starts_without_a_word_on_the_terminal_and_says_what_it_runs_on() -> None:
    program = "from tasks.device import set_up_backend; print(set_up_backend(0).model_dump_json())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert '"kind":"cpu"' in done.stdout
    assert '"backend":"tensorflow"' in done.stdout


def test_stderr_works_again_after_the_backend_started() -> None:
    program = "import os; from tasks.device import set_up_backend; set_up_backend(0); os.write(2, b'after')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "after"


def test_the_feed_gives_the_batches_of_the_epoch_that_was_chosen_last() -> None:
    set_up_backend(0)
    batches = row_batches(np.arange(10, dtype=np.int32) % 3, TrainingConfig(batch_size=4))
    fed = feed(batches)
    seen = []
    for epoch in (0, 5):
        batches.shuffle(epoch)
        expected = [batches[place] for place in range(len(batches))]
        received = [(np.asarray(rows), np.asarray(labels)) for rows, labels in fed]
        assert [len(rows) for rows, _ in received] == [4, 4, 2]
        for (rows, labels), (our_rows, our_labels) in zip(received, expected, strict=True):
            assert rows.tolist() == our_rows.tolist()
            assert labels.tolist() == our_labels.tolist() == (our_rows % 3).tolist()
        seen.append(np.concatenate([rows for rows, _ in received]).tolist())
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(10))
    assert seen[0] != seen[1]
