"""Train in a process of its own: PREPARED folder, OUT folder, how many CPU devices share the work, JSON of the recipe.

A backend starts once in a process, so another one, or another set of devices, needs another process. The training is
interrupted in its last epoch and resumed; OUT gets the model, its golden predictions and facts.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from schemas.config import TrainingConfig
from schemas.contract import FASHION_MNIST
from tasks.device import backend_name, set_up_backend
from tasks.golden import write_golden
from tasks.train import Figures, fit_network, save_model


class _Interrupted(Exception):
    pass


def main(prepared: Path, out: Path, devices: int, config: TrainingConfig) -> None:
    if backend_name() == "tensorflow":
        import tensorflow as tf

        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    splits = [
        (np.load(prepared / f"{name}_images.npy"), np.load(prepared / f"{name}_labels.npy"))
        for name in ("train", "validation")
    ]
    names = [f"CPU:{number}" for number in range(devices)] if devices > 1 else []

    def fit(**options: Any) -> tuple[Any, list[Figures]]:
        set_up_backend(config.seed, "cpu")
        return fit_network(FASHION_MNIST, config, splits[0], splits[1], devices=names, **options)

    def interrupt(epoch: int, _: Figures) -> None:
        if epoch == config.epochs - 1:
            raise _Interrupted

    device = set_up_backend(config.seed, "cpu")
    try:
        fit(checkpoint=out / "checkpoint.npz", on_epoch=interrupt)
    except _Interrupted:
        epochs: list[int] = []
        model, history = fit(checkpoint=out / "checkpoint.npz", on_epoch=lambda epoch, _: epochs.append(epoch))
    save_model(model, FASHION_MNIST, config, out)
    write_golden(model, splits[1][0], out)
    facts: dict[str, Any] = {"device": device.model_dump(), "history": history, "epochs_after_the_interruption": epochs}
    if backend_name() != "tensorflow":
        whole = fit()[0].get_weights()
        facts["as_if_never_stopped"] = all(map(np.array_equal, whole, model.get_weights()))
    (out / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), TrainingConfig.model_validate_json(sys.argv[4]))
