"""The effects of the environment and of edited code on a run, with real worker processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.config import PROJECT_ROOT, TrainingConfig
from schemas.references import PreparedData, TrainedModel
from tasks.model.backend import gpu_driver_present
from tasks.model.inference import run_stored_model
from tasks.runtime.fingerprint import code_digest
from tasks.train import train
from tests.field_faults import field_fault


@pytest.mark.skipif(gpu_driver_present(), reason="compares weights of the CPU")
@field_fault(
    "hidden input of a cached result",
    "`keras.json` sets float16, epsilon 1 or channels_first; KERAS_, TF_ and oneDNN variables are set",
    "Training gives the weights of a clean machine, and the model loads with its golden predictions",
)
def test_the_environment_of_a_machine_changes_no_weights(
    sample_trained: TrainedModel,
    sample_prepared: PreparedData,
    small_config: TrainingConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"floatx": "float16", "epsilon": 1, "image_data_format": "channels_first", "backend": "torch"}
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras" / "keras.json").write_text(json.dumps(settings))
    monkeypatch.delenv("KERAS_HOME", raising=False)
    for name, value in {
        "HOME": str(tmp_path),
        "KERAS_MAX_EPOCHS": "1",
        "KERAS_MAX_STEPS_PER_EPOCH": "2",
        "KERAS_NNX_ENABLED": "1",
        "TF_ENABLE_ONEDNN_OPTS": "0",
        "TF_XLA_FLAGS": "--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit",
        "TF_DETERMINISTIC_OPS": "0",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "OMP_NUM_THREADS": "2",
        "PYTHONHASHSEED": "3",
    }.items():
        monkeypatch.setenv(name, value)
    trained = train.fn(sample_prepared, small_config, tmp_path)
    assert not trained.record.reused
    assert (trained.epochs_run, trained.weights_sha256) == (3, sample_trained.weights_sha256)
    assert trained.record.key == sample_trained.record.key
    output = run_stored_model(trained.record.path, sample_prepared.record.path)
    assert output.golden_difference == 0


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the code and the locks, to edit."""
    for folder in ("schemas", "tasks", "requirements"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT_ROOT / folder, tmp_path / "checkout" / folder, ignore=ignored)
    return tmp_path / "checkout"


def _python(checkout: Path, program: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@field_fault(
    "hidden input of a cached result",
    "Core code and the lock are edited while a run waits, or a module is removed",
    "Cache keys are those of the code that the run imported, and the manifest records it as uncommitted",
)
def test_keys_are_those_of_the_imported_code(checkout: Path) -> None:
    program = """
from pathlib import Path
from tasks.runtime.fingerprint import code_and_lock, code_was_edited, installed_extra
{edit}
print(code_and_lock("tasks.model.fit"))
print(code_was_edited())
"""
    edit = """
network, lock = Path("tasks/model/network.py"), Path(f"requirements/{installed_extra()}.lock")
network.write_text(network.read_text().replace("Dense(units", "Dense(2 * units"))
lock.write_text(lock.read_text() + "added==1")
Path("tasks/model/checkpoint.py").unlink()
"""
    before, edited = _python(checkout, program.format(edit="")).splitlines()
    assert code_digest(("tasks.model.fit",)) in before
    assert edited == "False"
    assert _python(checkout, program.format(edit=edit)).splitlines() == [before, "True"]
    assert _python(checkout, program.format(edit="")).splitlines()[0] != before


@field_fault(
    "hidden input of a cached result",
    "The network's code or the lock is edited between the start of a run and its training",
    "The worker process rejects its job and names what changed, so nothing is stored under the earlier key",
)
@pytest.mark.parametrize(
    ("file", "edit", "expected"),
    [
        ("tasks/model/network.py", "\nADDED = 1", "The code of tasks.model.inference changed"),
        ("requirements/{extra}.lock", "\nadded==1", "The lock of tasks.model.inference changed"),
        ("tasks/model/network.py", "\n# Reworded.", "nothing changed"),
    ],
    ids=["code", "lock", "comment"],
)
def test_a_worker_with_other_code_refuses_its_job(checkout: Path, file: str, edit: str, expected: str) -> None:
    program = f"""
from pathlib import Path
from schemas.errors import CodeChanged, StoredArtifactError
from tasks.model.inference import run_stored_model
from tasks.runtime.fingerprint import installed_extra
path = Path({file!r}.format(extra=installed_extra()))
path.write_text(path.read_text() + {edit!r})
try:
    run_stored_model(Path("missing"))
except CodeChanged as error:
    print(error)
except StoredArtifactError:  # the worker began its job
    print("nothing changed")
"""
    assert expected in _python(checkout, program)
