import json
import re
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cli.main import main
from cli.printed_commands import runnable
from schemas.config import PROJECT_ROOT, PromotionConfig, TrainingConfig
from schemas.contract import FASHION_MNIST, SPLITS, Split
from schemas.errors import CandidateRejected, DatasetChanged, StoredArtifactError
from schemas.layout import HISTORY_NAME, WEIGHTS_NAME
from schemas.references import Evaluation, ModelVersion, PreparedData, StageRecord, TrainedModel, ValidatedSplit
from schemas.store import LogHead
from tasks.data.splits import open_split
from tasks.evaluate import evaluate
from tasks.model.backend import set_up_backend
from tasks.model.fit import save_model
from tasks.model.inference import write_golden
from tasks.model.network import build_network
from tasks.model.test_predictions import StoredPredictions, read_predictions, write_predictions
from tasks.registry.champion import promote
from tasks.registry.promotion import Champion, measure_candidate
from tasks.registry.provenance import code_revision
from tasks.registry.signatures import signing_key
from tasks.registry.store import ModelStore
from tasks.reports.version_summary import summarize_version
from tasks.runtime.files import sha256_file
from tasks.train import train
from tasks.version import version
from tests.field_faults import field_fault
from tests.keys import write_keys
from tests.plain_keras import plain_network
from tests.resealed import reseal
from tests.sample import shards_of
from tests.stored import make_older
from tests.tasks.test_shards import run

# Three epochs on 900 images do not reach the minimum.
NO_FLOOR = PromotionConfig(minimum_accuracy=0, minimum_recall=0)
NOT_WORSE = NO_FLOOR.model_copy(update={"policy": "not_worse"})


@pytest.fixture(scope="module", autouse=True)
def _quickly(in_this_process: None) -> None:
    pass


@pytest.fixture(scope="module")
def sample_evaluation(
    sample_prepared: PreparedData, sample_trained: TrainedModel, sample_artifacts: Path
) -> Evaluation:
    return evaluate.fn(sample_prepared, sample_trained, sample_artifacts)


@pytest.fixture(scope="module")
def worse_trained(
    sample_prepared: PreparedData,
    sample_trained: TrainedModel,
    small_config: TrainingConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> TrainedModel:
    """An untrained network in place of the trained one."""
    folder = tmp_path_factory.mktemp("worse")
    set_up_backend(small_config.seed)
    network = build_network(FASHION_MNIST, small_config)
    save_model(network, FASHION_MNIST, small_config, folder)
    write_golden(network, open_split(sample_prepared.record.path, "validation"), folder)
    shutil.copy(sample_trained.record.path / HISTORY_NAME, folder)
    record = sample_trained.record.model_copy(update={"path": folder, "key": "2" * 64, "digest": "2" * 64})
    weights = sha256_file(folder / WEIGHTS_NAME)
    return sample_trained.model_copy(update={"record": record, "weights_sha256": weights})


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore.of(tmp_path, "fashion-mnist")


@pytest.fixture
def add(
    sample_data: dict[Split, ValidatedSplit],
    sample_prepared: PreparedData,
    sample_trained: TrainedModel,
    small_config: TrainingConfig,
    sample_artifacts: Path,
    tmp_path: Path,
) -> Any:
    """Return a function that adds a version to a store in tmp_path. Another model or key is another candidate."""

    def run(
        trained: TrainedModel = sample_trained,
        key: str | None = None,
        promotion: PromotionConfig = NO_FLOOR,
        fetched: tuple[Split, ...] = (),
        note: str | None = None,
        further: tuple[StageRecord, ...] = (),
        **settings: Any,
    ) -> ModelVersion:
        config = small_config.model_copy(update=settings)
        data = {
            split: validated.model_copy(update={"data": validated.data.model_copy(update={"origin": "fetched"})})
            if split in fetched
            else validated
            for split, validated in sample_data.items()
        }
        evaluation = evaluate.fn(sample_prepared, trained, sample_artifacts)
        if key is not None:
            trained = trained.model_copy(update={"record": trained.record.model_copy(update={"key": key})})
        return version.fn(data, sample_prepared, trained, evaluation, config, promotion, tmp_path, note, further)

    return run


def test_the_first_version_becomes_champion(add: Any, store: ModelStore) -> None:
    added = add()
    assert (added.version, added.created, added.champion) == (1, True, True)
    assert added.path == store.root / "versions" / "0001"
    assert {path.name for path in added.path.iterdir()} == {
        *("topology.json", "model.weights.h5", "metrics.json", "profile.json", "report.html"),
        *("golden.json", "verdict.json", "test_predictions.parquet", "manifest.json", "bom.cdx.json"),
    }
    assert store.aliases_of(1) == ["champion"]


def test_eight_shards_have_the_version_of_one_file(
    add: Any, sample_trained: TrainedModel, small_config: TrainingConfig, sample_artifacts: Path, tmp_path: Path
) -> None:
    first = add()
    data, prepared = run({split: shards_of(tmp_path / "csv", split, 8) for split in SPLITS}, tmp_path)
    trained = train.fn(prepared, small_config, sample_artifacts)
    assert (trained.record.reused, trained.weights_sha256) == (True, sample_trained.weights_sha256)
    evaluation = evaluate.fn(prepared, trained, sample_artifacts)
    assert evaluation.record.reused
    again = version.fn(data, prepared, trained, evaluation, small_config, NO_FLOOR, tmp_path)
    assert (again.version, again.created) == (first.version, False)


def test_the_manifest_records_how_a_version_was_created(
    add: Any,
    store: ModelStore,
    sample_prepared: PreparedData,
    sample_trained: TrainedModel,
    small_config: TrainingConfig,
) -> None:
    import keras

    added = add()
    stored = store.version(1)
    stored.check()
    manifest = stored.manifest
    assert set(manifest.files) == {path.name for path in added.path.iterdir()} - {"manifest.json"}
    for name, entry in manifest.files.items():
        assert entry.bytes == (added.path / name).stat().st_size
    assert manifest.topology_id == sample_trained.topology_sha256 == manifest.files["topology.json"].sha256
    assert manifest.configuration == small_config.model_dump()
    assert (manifest.seed, manifest.parent, manifest.flow_run_id) == (7, None, None)
    assert manifest.packages["keras"] == keras.__version__
    assert manifest.device.as_json() == sample_trained.device.model_dump()
    assert json.loads(stored.read("metrics.json"))["test_accuracy"] == added.test_accuracy == manifest.test_accuracy
    assert [(entry.stage, entry.split) for entry in manifest.lineage] == [
        *(("ingest", "train"), ("validate", "train"), ("ingest", "test"), ("validate", "test")),
        *(("prepare", None), ("train", None), ("evaluate", None)),
    ]
    assert manifest.data.prepared_sha256 == sample_prepared.sha256
    assert all(entry.seconds > 0 for entry in manifest.lineage)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", manifest.created)


@pytest.mark.parametrize(
    ("early_stopping", "uses"),
    [
        (None, ["learning curves", "golden predictions"]),
        (9, ["learning curves", "early stopping", "golden predictions"]),
    ],
)
def test_manifest_and_report_state_what_was_held_out(
    early_stopping: int | None, uses: list[str], add: Any, store: ModelStore
) -> None:
    added = add(early_stopping=early_stopping)
    assert store.version(1).manifest.as_json()["data"]["held_out"] == {"rows": 100, "used_for": uses}
    report = (added.path / "report.html").read_text(encoding="utf-8")
    assert report.count(f"held out for {', '.join(uses)}") == 2


def test_a_further_stage_is_in_the_lineage_of_a_new_version(
    add: Any, store: ModelStore, sample_prepared: PreparedData
) -> None:
    add()
    record = sample_prepared.record.model_copy(update={"stage": "average", "key": "3" * 64})
    added = add(further=(record,))
    assert (added.version, added.created) == (2, True)
    assert store.version(2).manifest.stage("average").key == record.key
    changed = record.model_copy(update={"key": "4" * 64})
    assert [add(further=(further,)).version for further in (record, changed)] == [2, 3]


def test_the_manifest_records_the_data(add: Any, store: ModelStore) -> None:
    add()
    data = store.version(1).manifest.data
    assert (data.train.rows, data.train.quarantined, data.test.rows) == (1_000, 0, 200)
    assert data.split_rows == {"train": 900, "validation": 100, "test": 200}
    assert data.train.csv_sha256 == sha256_file(PROJECT_ROOT / "tests" / "data" / "fashion-mnist_train.csv.gz")
    assert [csv.file for csv in data.train.csv_files] == ["fashion-mnist_train.csv.gz"]
    (drift,) = (check for check in data.test.as_json()["checks"] if check["check"] == "drift")
    assert (drift["bound"], drift["severity"], drift["result"]) == ("<= 0.1", "warning", "met")
    assert 0 < drift["figure"] < 0.1


def test_the_manifest_records_the_seconds_of_the_flow_run(
    add: Any, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(start_time=datetime.now(UTC) - timedelta(minutes=5))
    monkeypatch.setattr("tasks.version.FlowRunContext", SimpleNamespace(get=lambda: context))
    add()
    assert 300 <= store.version(1).manifest.as_json()["seconds_since_start"] < 600


def test_the_summary_shows_cached_and_computed_stages(add: Any, store: ModelStore) -> None:
    add()
    text = summarize_version(store.version(1), champion=True)
    assert text.startswith("# Version 1: promoted, current champion\n\nPromoted: there was no champion.\n")
    assert "| train, validation, test rows | 900, 100, 200 |" in text
    assert re.search(r"\| ingest train \| (cached|computed) \| \d+\.\d\d \|", text)


def test_a_run_with_nothing_new_lists_its_own_stages(add: Any, store: ModelStore) -> None:
    add()
    stages = [{"stage": "ingest", "split": "train", "reused": True, "seconds": 1.25}]
    text = summarize_version(store.version(1), stages, champion=True)
    assert text.startswith("# Nothing new: version 1, current champion\n\nAn earlier run created it")
    assert "| ingest train | cached | 1.25 |" in text
    assert "| train, validation, test rows | 900, 100, 200 |" in text  # the keys of a manifest that was read are sorted
    assert "evaluate" not in text


def test_the_stored_files_alone_reproduce_the_metrics(add: Any, sample_prepared: PreparedData) -> None:
    added = add()
    test = open_split(sample_prepared.record.path, "test")
    loss, accuracy = plain_network(added.path).evaluate(test.scaled(slice(None)), test.labels, verbose=0)
    assert (accuracy, loss) == pytest.approx((added.test_accuracy, added.test_loss), abs=1e-6)


def test_the_same_inputs_add_no_second_version(add: Any, store: ModelStore) -> None:
    add()
    again = add()
    assert (again.version, again.created) == (1, False)
    assert store.numbers() == [1]


def test_a_note_is_stored_with_a_new_version_only(
    add: Any, store: ModelStore, caplog: pytest.LogCaptureFixture
) -> None:
    added = add(note="<b>half</b> the decay")
    assert store.version(1).manifest.note == "<b>half</b> the decay"
    assert "Note: &lt;b&gt;half&lt;/b&gt; the decay" in (added.path / "report.html").read_text(encoding="utf-8")
    assert not add(note="<b>half</b> the decay").created
    assert "note" not in caplog.text
    assert not add(note="another").created
    assert "the note is not stored, because version 1 exists" in caplog.text


def test_a_resealed_verdict_does_not_prevent_a_new_version(add: Any, store: ModelStore) -> None:
    first = add()
    (first.path / "verdict.json").write_text("[]")
    reseal(first.path)
    again = add()
    assert (again.version, again.created) == (2, True)


def test_an_equal_candidate_is_kept_and_its_verdict_stored(add: Any, store: ModelStore) -> None:
    add()
    twin = add(key="b" * 64)
    assert (twin.version, twin.champion) == (2, False)
    stored = store.version(2)
    verdict = json.loads(stored.read("verdict.json"))
    assert (verdict["outcome"], verdict["champion"], stored.manifest.parent) == ("kept", 1, 1)
    paired = verdict["rules"][-1]
    assert (paired["figure"], paired["fixed"], paired["broken"], paired["rows"]) == (1.0, 0, 0, 200)
    assert store.aliases.champion() == 1


def test_a_better_candidate_becomes_champion(add: Any, worse_trained: TrainedModel, store: ModelStore) -> None:
    add(trained=worse_trained)
    better = add()
    worse = add(trained=worse_trained, key="c" * 64)
    assert (better.champion, worse.champion) == (True, False)
    log = store.aliases.read()
    assert [(event.before, event.to) for event in log] == [(None, 1), (1, 2)]
    assert "better than version 1 on the same 200 test rows" in log[1].reason
    assert "worse than version 2" in worse.verdict


@field_fault(
    "input replaced silently",
    "Published data is trained on while the champion is of a person's own data",
    "A better version is kept, and its reason names both origins; it is promoted by hand only",
)
def test_data_of_another_origin_is_promoted_by_hand_only(
    add: Any, worse_trained: TrainedModel, store: ModelStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(trained=worse_trained)
    mixed = add(fetched=("test",))
    published = add(fetched=("train", "test"), key="b" * 64, promotion=NOT_WORSE)
    assert (mixed.champion, published.champion, store.aliases.champion()) == (False, False, 1)
    assert "another origin (train supplied, test fetched) than that of version 1" in mixed.verdict
    with pytest.raises(SystemExit):
        main(["why", "3", "--artifacts-dir", str(tmp_path)])
    printed = capsys.readouterr().out
    assert printed.startswith(f"version 3: kept\n  {runnable(published.verdict)} (policy: not_worse)\n")
    assert (
        "  FAILED  origin of the data, compared with version 1: train fetched, test fetched, "
        "expected train supplied, test supplied\n"
    ) in printed

    promote(store, published.version, "the published data is wanted")
    again = add(fetched=("train", "test"), key="c" * 64, promotion=NOT_WORSE)
    assert again.champion


def test_the_origin_of_a_damaged_champion_counts(add: Any, store: ModelStore) -> None:
    first = add()
    (first.path / "weights-copy.h5").touch()
    second = add(fetched=("train",), key="b" * 64)
    assert "another origin (train fetched, test supplied) than that of version 1" in second.verdict


def test_a_rejected_candidate_is_stored_and_raises_each_time(add: Any, store: ModelStore) -> None:
    strict = PromotionConfig(minimum_accuracy=0.99)
    for _ in range(2):  # the second time the version exists
        with pytest.raises(CandidateRejected, match=r"test accuracy is .*, expected >= 0.99.*--minimum-accuracy"):
            add(promotion=strict)
    (row,) = store.summaries()
    assert (row.outcome, row.aliases) == ("refused", [])


def test_a_waiting_candidate_is_promoted_by_hand(add: Any, store: ModelStore) -> None:
    ask = PromotionConfig(minimum_accuracy=0, minimum_recall=0, policy="ask")
    first = add(promotion=ask)
    assert (first.champion, first.waiting, store.aliases.read()) == (False, True, [])
    assert store.version(1).manifest.verdict.outcome == "waiting"
    assert "Waiting for approval" in (first.path / "report.html").read_text()
    assert add(promotion=ask).waiting  # the same inputs
    promote(store, 1, "approved")
    again = add(promotion=ask)
    assert (again.version, again.champion, again.waiting) == (1, True, False)
    assert not add(key="b" * 64, promotion=ask).waiting  # not better


def test_a_manifest_records_the_head_of_the_alias_log(add: Any, store: ModelStore) -> None:
    add()
    head = store.aliases.head()
    add(key="b" * 64)
    assert [store.version(number).manifest.alias_log for number in (1, 2)] == [LogHead(), head]


def test_other_bounds_give_another_verdict(add: Any, store: ModelStore) -> None:
    with pytest.raises(CandidateRejected):
        add(promotion=PromotionConfig(minimum_accuracy=0.99))
    second = add()
    assert (second.version, second.created, second.champion) == (2, True, True)
    assert [row.outcome for row in store.summaries()] == ["refused", "promoted"]


def test_the_champion_predicts_the_rows_of_the_candidate(
    add: Any, sample_prepared: PreparedData, sample_evaluation: Evaluation, tmp_path: Path
) -> None:
    """Also if its own metrics come from other rows."""
    champion = add()
    prepared, evaluated = tmp_path / "prepared", tmp_path / "evaluated"
    shutil.copytree(sample_prepared.record.path, prepared)
    shutil.copytree(sample_evaluation.record.path, evaluated)
    for path in (prepared / "test").iterdir():
        np.save(path, np.load(path)[:50])
    stored = read_predictions(evaluated / "test_predictions.parquet", FASHION_MNIST)
    fifty = StoredPredictions(stored.images[:50], stored.labels[:50], stored.probabilities[:50])
    write_predictions(evaluated / "test_predictions.parquet", fifty, FASHION_MNIST)

    def moved(reference: Any, path: Path) -> Any:
        return reference.model_copy(update={"record": reference.record.model_copy(update={"path": path})})

    metrics = measure_candidate(
        moved(sample_prepared, prepared),
        moved(sample_evaluation, evaluated),
        Champion(champion.version, champion.path, fault=None),
    )
    assert metrics.paired is not None
    assert (metrics.paired.rows, metrics.paired.fixed, metrics.paired.broken) == (50, 0, 0)


def test_changed_golden_predictions_are_rejected(add: Any, sample_trained: TrainedModel, tmp_path: Path) -> None:
    folder = tmp_path / "trained"
    shutil.copytree(sample_trained.record.path, folder)
    golden = json.loads((folder / "golden.json").read_bytes())
    golden["probabilities"][3][4] += 0.001
    (folder / "golden.json").write_text(json.dumps(golden))
    record = sample_trained.record.model_copy(update={"path": folder, "digest": "1" * 64})
    with pytest.raises(CandidateRejected, match="golden predictions"):
        add(trained=sample_trained.model_copy(update={"record": record}))


def test_another_contract_adds_no_version(add: Any, store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = replace(FASHION_MNIST, digest="0" * 64)
    monkeypatch.setattr("tasks.registry.provenance.contract_of", lambda dataset: changed)
    with pytest.raises(DatasetChanged, match=r"fashion-mnist\.toml changed during this run: ingest train read another"):
        add()
    assert store.numbers() == []


def test_changed_weights_add_no_version(add: Any, sample_trained: TrainedModel, store: ModelStore) -> None:
    with pytest.raises(StoredArtifactError, match="changed since it was trained"):
        add(trained=sample_trained.model_copy(update={"weights_sha256": "0" * 64}))
    assert (store.numbers(), store.leftovers()) == ([], [])


def test_no_version_replaces_a_damaged_champion(add: Any) -> None:
    first = add()
    with (first.path / "report.html").open("a") as report:
        report.write("x")
    second = add(key="b" * 64)
    assert not second.champion
    assert "version 1, the champion, cannot be measured" in second.verdict
    assert "report.html" in second.verdict


@field_fault(
    "input replaced silently",
    "The champion's folder is removed by hand, and published data is trained on",
    "The new version is kept, its reason names the missing champion, and it is promoted by hand only",
)
def test_no_version_replaces_a_removed_champion(add: Any, store: ModelStore) -> None:
    shutil.rmtree(add().path)
    second = add(key="b" * 64, fetched=("train", "test"))
    assert not second.champion
    assert "version 1, the champion, cannot be measured. There is no version 1" in second.verdict
    promote(store, 2, "the first one is gone")
    assert add(key="b" * 64).champion


def test_champion_of_an_older_layout_prevents_no_version(add: Any, store: ModelStore) -> None:
    add()
    make_older(store.version(1))
    second = add(key="b" * 64)
    assert (second.version, second.champion) == (2, False)
    assert "version 1, the champion, cannot be measured. Version 1 has an older layout" in second.verdict


def test_the_code_revision_is_that_of_the_checkout() -> None:
    head = subprocess.run(
        ["git", "-C", str(PROJECT_ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert code_revision()["revision"] == head
    assert isinstance(code_revision()["dirty"], bool)


def test_training_signs_before_the_version_exists(
    add: Any, store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = write_keys(tmp_path)
    monkeypatch.setenv("FASHION_ANN_SIGNING_KEY", str(private))
    monkeypatch.setenv("FASHION_ANN_VERIFY_KEY", str(public))
    added = add()
    assert (added.created, added.champion) == (True, True)
    assert store.version(1).check_signature() is not None
    assert add().created is False
    (added.path / "manifest.json.sig").write_bytes(bytes(64))
    again = add()
    assert (again.version, again.created, again.champion) == (2, True, False)
    assert "Kept: version 1, the champion, cannot be measured. Version 1 is not accepted" in again.verdict
    assert store.version(2).check_signature() is not None


def test_an_unsigned_candidate_waits_for_a_signature(
    add: Any, store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = write_keys(tmp_path)
    monkeypatch.setenv("FASHION_ANN_VERIFY_KEY", str(public))
    added = add()
    assert (added.waiting, added.champion) == (True, False)
    assert added.verdict == (
        "Waiting for a signature, because FASHION_ANN_SIGNING_KEY is not set: there was no champion."
    )
    assert store.aliases.champion() is None
    assert add().created is False
    with pytest.raises(StoredArtifactError, match="fashion-ann sign 1 --key FILE"):
        promote(store, 1, "a test")
    key = signing_key(str(private))
    assert key is not None
    store.sign(1, key)
    assert promote(store, 1, "a test").event.to == 1
