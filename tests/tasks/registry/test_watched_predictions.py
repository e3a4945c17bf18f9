"""Days of predictions are compared with the version that predicted; labels that arrive later are joined by image."""

import resource
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from schemas.contract import FASHION_MNIST
from schemas.errors import StoredArtifactError
from schemas.references import WatchedDay
from tasks.registry.prediction_records import read_labels, read_records, store_labels
from tasks.registry.watched_predictions import labelled_images, watched_days
from tests.watched import Images, Simulation

START = datetime(2026, 1, 1, 9, tzinfo=UTC)


@pytest.fixture
def simulation(tmp_path: Path) -> Simulation:
    return Simulation(tmp_path)


def watched(simulation: Simulation, now: datetime = START, days: int = 200) -> list[WatchedDay]:
    return watched_days(simulation.artifacts, simulation.store, FASHION_MNIST, now, days)


def beyond(day: WatchedDay) -> set[str]:
    return {check.check for check in day.checks if check.result == "warned"}


def brighter(images: Images) -> Images:
    return np.minimum(images.astype(np.float32) * 1.1, 255).astype(np.uint8)


def write_csv(path: Path, images: Images, labels: np.ndarray) -> Path:
    header = ",".join(["label", *(f"pixel{number}" for number in range(1, 785))])
    np.savetxt(path, np.column_stack([labels, images]), fmt="%d", delimiter=",", header=header, comments="")
    return path


def test_months_are_quiet_until_the_onset_of_each_change(simulation: Simulation) -> None:
    """100 quiet days, then a day of each change: exactly these are flagged, by the check that measures the change."""
    for number in range(100):
        simulation.predict(START + timedelta(days=number))
    end = START + timedelta(days=100)
    simulation.predict(end, change=lambda images: 255 - images)
    simulation.predict(end + timedelta(days=1), change=brighter)
    simulation.predict(end + timedelta(days=2), more_of=6)
    *quiet, inverted, bright, shifted = watched(simulation, end + timedelta(days=2))
    assert [(day.day, beyond(day)) for day in quiet if beyond(day)] == []
    assert len(quiet) == 100
    assert all(len(day.checks) == 3 for day in quiet)
    assert beyond(inverted) == {"prediction_drift"}
    assert beyond(bright) == {"prediction_drift"}
    assert "prediction_classes" in beyond(shifted)
    assert "prediction_drift" not in beyond(shifted)
    assert shifted.drifted


@pytest.mark.parametrize("more_of", [None, 6])
def test_intervals_contain_the_true_accuracy(simulation: Simulation, more_of: int | None) -> None:
    """In at least 90 of 100 draws, also if a difficult class is five times as frequent."""
    truths = []
    for number in range(100):
        probabilities, labels = simulation.draw(500, more_of)
        images = np.tile(simulation.images[:1], (500, 1))
        simulation.record(START + timedelta(days=number), images, probabilities, simulation.version)
        truths.append(float((probabilities.argmax(axis=1) == labels).mean()))
    days = watched(simulation, START + timedelta(days=99))
    intervals = [day.estimated.interval for day in days if day.estimated is not None]
    covered = [low <= truth <= high for (low, high), truth in zip(intervals, truths, strict=True)]
    assert sum(covered) >= 90
    assert np.mean([high - low for low, high in intervals]) < 0.1


def test_days_and_versions_are_apart_and_files_of_a_day_are_added(simulation: Simulation) -> None:
    other = simulation.add_version()
    simulation.predict(START, 300)
    simulation.predict(START + timedelta(hours=3), 200)
    simulation.predict(START, 250, version=other)
    simulation.predict(START + timedelta(days=1), 100)
    days = watched(simulation, START + timedelta(days=1))
    assert [(day.day, day.version, day.files, day.rows) for day in days] == [
        *[("2026-01-01", 1, 2, 500), ("2026-01-01", 2, 1, 250)],
        ("2026-01-02", 1, 1, 100),
    ]
    assert days[2].checks == ()
    assert "Fewer than 200 rows" in days[2].note
    assert [day.day for day in watched(simulation, START + timedelta(days=1), days=1)] == ["2026-01-02"]


def test_a_repeated_prediction_counts_once(simulation: Simulation) -> None:
    probabilities, labels = simulation.draw(200)
    images = simulation.images_of(labels)
    for _ in range(2):
        simulation.record(START, images, probabilities, simulation.version)
    assert [(day.files, day.rows) for day in watched(simulation)] == [(1, 200)]


def test_a_file_in_batches_has_the_profile_of_the_whole(simulation: Simulation, tmp_path: Path) -> None:
    whole, images, _ = simulation.predict(START, 300)
    assert whole.rows == sum(whole.class_rows) == 300
    assert np.sum(whole.pixel_counts) == images.size
    (record,) = read_records(tmp_path, FASHION_MNIST)
    rows = record.rows()
    assert np.bincount(rows.predicted, minlength=10).tolist() == whole.class_rows
    assert (record.folder / "rows.parquet").stat().st_size < 25 * 300 + 2_000


def test_labels_are_joined_by_image_and_the_last_one_counts(simulation: Simulation, tmp_path: Path) -> None:
    _, images, labels = simulation.predict(START, 300)
    first, unique = np.unique(images, axis=0, return_index=True)
    wrong = write_csv(tmp_path / "wrong.csv", first, (labels[unique] + 1) % 10)
    right = write_csv(tmp_path / "right.csv", first, labels[unique])
    store_labels(wrong, FASHION_MNIST, tmp_path, START)
    before = watched(simulation)[0].measured
    stored = store_labels(right, FASHION_MNIST, tmp_path, START + timedelta(hours=1))
    (day,) = watched(simulation)
    assert before is not None
    assert day.measured is not None
    assert day.estimated is not None
    assert day.measured.labelled == before.labelled == 300
    assert day.measured.accuracy > 0.7 > 0.2 > before.accuracy
    assert day.measured.interval[0] < day.measured.accuracy < day.measured.interval[1]
    assert labelled_images(tmp_path, FASHION_MNIST, stored) == set(stored)
    assert day.checks[-1].check == "measured_accuracy"


def test_wrong_answers_on_labels_are_beyond_a_bound(simulation: Simulation, tmp_path: Path) -> None:
    _, images, labels = simulation.predict(START, 300)
    first, unique = np.unique(images, axis=0, return_index=True)
    store_labels(write_csv(tmp_path / "l.csv", first, (labels[unique] + 1) % 10), FASHION_MNIST, tmp_path, START)
    assert "measured_accuracy" in beyond(watched(simulation)[0])


def test_a_shadow_is_compared_on_labels_and_never_alarms(simulation: Simulation, tmp_path: Path) -> None:
    challenger = simulation.add_version()
    probabilities, labels = simulation.draw(300)
    images = 255 - simulation.images[:300]  # beyond the bound of drift
    simulation.record(START, images, probabilities, simulation.version)
    perfect = np.full((300, 10), 0.01, np.float32)
    perfect[np.arange(300), labels] = 0.91
    simulation.record(START, images, perfect, challenger, shadow_of=1)
    store_labels(write_csv(tmp_path / "l.csv", images, labels), FASHION_MNIST, tmp_path, START)
    champion, shadow = watched(simulation)
    assert (champion.paired, champion.shadow_of, shadow.shadow_of) == (None, None, 1)
    assert shadow.paired is not None
    assert champion.measured is not None
    assert (shadow.paired.rows, shadow.paired.broken) == (300, 0)
    assert shadow.paired.fixed == 300 - champion.measured.correct
    assert champion.drifted
    assert beyond(shadow)
    assert not shadow.drifted


def test_labels_that_conflict_are_reported(
    simulation: Simulation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images, twice = simulation.images[:3], simulation.images[[0, 0, 1, 1]]
    store_labels(write_csv(tmp_path / "a.csv", images, np.array([1, 1, 1])), FASHION_MNIST, tmp_path, START)
    assert caplog.text == ""
    second = write_csv(tmp_path / "b.csv", twice, np.array([2, 3, 1, 1]))
    store_labels(second, FASHION_MNIST, tmp_path, START - timedelta(days=1))  # the clock was put back
    assert "1 images have rows with different labels" in caplog.text
    assert "1 images had another label in an earlier file" in caplog.text
    assert sorted(read_labels(tmp_path, FASHION_MNIST).values()) == [1, 1, 3]


def test_a_day_in_the_future_is_left_out_until_it_comes(
    simulation: Simulation, caplog: pytest.LogCaptureFixture
) -> None:
    simulation.predict(START)
    simulation.predict(START + timedelta(days=400))
    assert [day.day for day in watched(simulation)] == ["2026-01-01"]
    assert "2027-02-05 is in the future" in caplog.text
    assert len(watched(simulation, START + timedelta(days=400), days=401)) == 2


@pytest.mark.parametrize("damage", ["profile", "rows", "version"])
def test_what_is_damaged_is_left_out_with_a_warning(
    simulation: Simulation, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, images, labels = simulation.predict(START, 300)
    (record,) = read_records(tmp_path, FASHION_MNIST)
    if damage == "profile":
        (record.folder / "profile.json").write_text('{"rows": 3}')
        assert watched(simulation) == []
        assert "left out" in caplog.text
    elif damage == "rows":
        (record.folder / "rows.parquet").write_bytes(b"x")
        with pytest.raises(StoredArtifactError, match="sha256"):
            record.rows()
        first, unique = np.unique(images, axis=0, return_index=True)
        store_labels(write_csv(tmp_path / "l.csv", first, labels[unique]), FASHION_MNIST, tmp_path, START)
        (day,) = watched(simulation)
        assert day.measured is None
        assert day.rows == 300
    else:
        (simulation.version.folder / "test_predictions.parquet").write_bytes(b"x")
        (day,) = watched(simulation)
        assert (day.estimated, day.checks, day.drifted) == (None, (), False)
        assert "Nothing was compared" in day.note


def test_foreign_files_are_left_out(simulation: Simulation, tmp_path: Path) -> None:
    simulation.predict(START)
    (record,) = read_records(tmp_path, FASHION_MNIST)
    (record.folder.parent / "notes.txt").touch()
    (record.folder.parent.parent / "2026-01-02").touch()
    (record.folder.parent.parent / "labels").mkdir()
    (record.folder.parent.parent / "labels" / "mine.parquet").touch()
    assert [day.rows for day in watched(simulation)] == [500]


def test_a_failed_prediction_leaves_nothing(simulation: Simulation, tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        simulation.predict(START, change=lambda images: images[{}["no such"]])  # type: ignore[call-overload]
    assert watched(simulation) == []


def test_a_folder_that_cannot_be_written_to_costs_no_prediction(
    simulation: Simulation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "predictions").write_text("a file")
    profile, _, _ = simulation.predict(START)
    assert profile.rows == 500
    assert "not recorded" in caplog.text


def test_a_full_disk_costs_no_prediction(
    simulation: Simulation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))  # 500 rows have 10 KB
    try:
        profile, _, _ = simulation.predict(START)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert profile.rows == 500
    assert "not recorded" in caplog.text
    assert [path for path in (tmp_path / "predictions").rglob("*") if path.is_file()] == []
