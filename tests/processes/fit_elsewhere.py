"""Train in this process with another backend or set of devices: a backend starts only once per process.

Arguments: PREPARED folder, OUT folder, number of CPU devices, number of windows, JSON of the recipe. A checkpoint in
OUT is resumed. OUT receives the model, its golden predictions, a copy of each epoch's checkpoint and facts.json.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from schemas.config import TrainingConfig
from schemas.contract import FASHION_MNIST
from tasks.data.splits import open_split
from tasks.model.backend import backend_name, set_up_backend
from tasks.model.checkpoint import EpochMetrics
from tasks.model.fit import fit_network, save_model
from tasks.model.inference import write_golden


def main(prepared: Path, out: Path, devices: int, windows: int, config: TrainingConfig) -> None:
    if backend_name() == "tensorflow":
        import tensorflow as tf

        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    else:
        # Code that needs TensorFlow must fail here: Keras accepts its tensors on any backend.
        sys.modules["tensorflow"] = None  # type: ignore[assignment]
    train, validation = open_split(prepared, "train"), open_split(prepared, "validation")
    names = [f"CPU:{number}" for number in range(devices)] if devices > 1 else []
    device = set_up_backend(config.seed, "cpu")

    def fit(checkpoint: Path) -> tuple[Any, list[EpochMetrics]]:
        def keep(epoch: int, _: EpochMetrics) -> None:
            shutil.copyfile(checkpoint, out / f"after-{epoch}.npz")

        set_up_backend(config.seed, "cpu")
        return fit_network(
            FASHION_MNIST,
            config,
            train,
            validation,
            checkpoint=checkpoint,
            on_epoch=keep,
            devices=names,
            windows=windows,
        )

    model, history = fit(out / "checkpoint.npz")
    save_model(model, FASHION_MNIST, config, out)
    write_golden(model, validation, out)
    facts: dict[str, Any] = {"device": device.model_dump(), "history": history}
    if backend_name() != "tensorflow":
        resumed = fit(out / f"after-{config.epochs - 1}.npz")[0].get_weights()
        facts["resumed_equals_uninterrupted"] = all(map(np.array_equal, resumed, model.get_weights()))
    (out / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    prepared, out, devices, windows, recipe = sys.argv[1:]
    main(Path(prepared), Path(out), int(devices), int(windows), TrainingConfig.model_validate_json(recipe))
