"""train_on=gpu with a worker on another host, and the store on any of them. The hosts share only the remote.

The tests run in order: the later ones find the versions of the earlier ones.
"""

import json
from pathlib import Path
from typing import Any

from schemas.layout import MANIFEST_NAME, Artifacts
from tasks.runtime.stages import TRAIN
from tests.hosts.conftest import Hosts
from tests.remote.servers import READER_KEYS

_TRAIN = "train-fashion-mnist/on-demand"
# Longer than a pause of Prefect's client or of ours between two attempts.
_SECONDS_CUT = 8


def _parameters(seed: int, policy: str = "better") -> dict[str, Any]:
    return {
        "train_on": "gpu",
        "training": {"epochs": 300, "validation_size": 100, "seed": seed},  # at least ten seconds
        "promotion": {"minimum_accuracy": 0, "minimum_recall": 0, "policy": policy},
    }


def _checkpoints(hosts: Hosts) -> list[Path]:
    return list(Artifacts(hosts.two.folder / "artifacts").checkpoints.glob("*.npz"))


def _trained(hosts: Hosts) -> list[Path]:
    return list(TRAIN.outputs(hosts.two.folder / "artifacts").glob("[!.]*"))


def test_trains_on_another_host_while_its_link_is_cut_twice(hosts: Hosts) -> None:
    hosts.worker_on(hosts.two, "gpu")
    run_id = hosts.start(_TRAIN, **_parameters(1, policy="never"))
    hosts.wait_for(lambda: _checkpoints(hosts))
    hosts.two.cut_link(_SECONDS_CUT)
    hosts.wait_for(lambda: _trained(hosts), every=0.01)
    hosts.two.cut_link(_SECONDS_CUT)
    run = hosts.end_of(run_id)
    assert run.state_name == "Completed", run.state
    (version,) = hosts.one.folder.glob("artifacts/models/*/versions/*")
    assert json.loads((version / MANIFEST_NAME).read_bytes())["trained_by"]["host"] == "two"
    assert not list(hosts.two.folder.glob("artifacts/models"))


def test_a_store_is_used_from_hosts_that_did_not_make_it(hosts: Hosts) -> None:
    """Host two promotes, and host three predicts with credentials that only permit reading."""
    assert hosts.fashion_ann(hosts.two, "promote", "1", "--reason", "a test")["to"] == 1
    images = hosts.one.folder / "csvs" / "fashion-mnist_test.csv.gz"
    (hosts.three.folder / images.name).write_bytes(images.read_bytes())
    predicted = hosts.fashion_ann(hosts.three, "predict", images.name, "--output", "classes.csv", **READER_KEYS)
    assert (predicted["version"], predicted["rows"]) == (1, 200)
    assert hosts.fashion_ann(hosts.three, "verify", **READER_KEYS)
    assert hosts.fashion_ann(hosts.one, "versions")[0]["aliases"] == ["champion"]


def test_a_host_that_dies_in_training_costs_its_run(hosts: Hosts) -> None:
    lost = hosts.start(_TRAIN, **_parameters(2))
    (checkpoint,) = hosts.wait_for(lambda: _checkpoints(hosts))
    hosts.two.power_off()
    hosts.two.power_on()
    hosts.worker_on(hosts.two, "gpu")
    following = hosts.start(_TRAIN, **_parameters(2))  # waits for the slot of the lost training
    run = hosts.end_of(lost)
    assert run.state_name == "Failed", run.state
    assert "ended as Crashed" in str(run.state and run.state.message)
    run = hosts.end_of(following)
    assert run.state_name == "Completed", run.state
    assert "resuming after epoch" in (hosts.two.folder / "worker-two.log").read_text()
    assert not checkpoint.exists()
    assert len(hosts.fashion_ann(hosts.three, "versions")) == 2  # none of the lost run
