import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from schemas.config import (
    DEFAULT_SPACE,
    PROJECT_ROOT,
    BadRows,
    PromotionConfig,
    SearchSpace,
    TrainingConfig,
    WorkerSeconds,
    absolute,
    allowed_bad_rows,
    artifacts_folder,
    data_folder,
    expanded,
    is_default_data_folder,
    separate_folders,
)
from schemas.errors import WrongUsage
from tests.field_faults import field_fault

PATHS = {
    "a/../b": "b",
    "./a/./b/..": "a",
    "a/b": "a/b",
    "missing/../../{}/b": "b",
    "link/../b": "target/b",  # the parent of the link's target
    "link/b": "link/b",
}


@pytest.mark.parametrize(("given", "expected"), PATHS.items())
def test_a_path_is_printed_without_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, expected: str
) -> None:
    (tmp_path / "target" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "target" / "inner")
    monkeypatch.chdir(tmp_path)
    path = given.format(tmp_path.name)
    assert absolute(path) == tmp_path / expected
    assert artifacts_folder(path) == tmp_path / expected
    monkeypatch.setenv("FASHION_ANN_DATA_DIR", path)
    assert data_folder() == tmp_path / expected


EPSILON = 1e-9
# For each key: the values accepted at both ends of its range, and the nearest ones that are rejected.
TRAINING = {
    "epochs": ((1, 10_000), (0, 10_001)),
    "batch_size": ((1, 65_536), (0, 65_537)),
    "learning_rate": ((EPSILON, 1), (0, 1 + EPSILON, float("nan"))),
    "optimizer": (("adamw", "adam", "sgd", "rmsprop"), ("lion", "AdamW")),
    "weight_decay": ((0, 1), (-EPSILON, 1 + EPSILON)),
    "hidden_units": ((1, 4_096, [1, 4_096], [7] * 8), (0, 4_097, [4, 0], [], [7] * 9, "128-64")),
    "activation": (("relu", "tanh", "gelu"), ("softmax", "lambda")),
    "label_smoothing": ((0, 1 - EPSILON), (-EPSILON, 1)),
    "dropout": ((0, 1 - EPSILON), (-EPSILON, 1)),
    "validation_size": ((10, 1_000_000), (9, 1_000_001)),
    "early_stopping": ((1, 10_000, None), (0, 10_001)),
    "seed": ((0, 2**32 - 1), (-1, 2**32)),
    "memory_budget": (("1%", "99%", "0B", "1.5GiB", "700kB"), ("0%", "100%", "2", "2 GB", "2gb", "-1MB", 2**31)),
}
PROMOTION = {
    "policy": (("better", "not_worse", "never"), ("worse",)),
    "minimum_accuracy": ((0, 1, None), (-EPSILON, 1 + EPSILON)),
    "minimum_recall": ((0, 1, None), (-EPSILON, 1 + EPSILON)),
    "minimum_robustness": (({"blur": 0}, {"noise": 1, "mirror": 0.5}, None), ({}, {"fog": 0.5}, {"blur": 1 + EPSILON})),
    "minimum_shadow_rows": ((1, 10**12, None), (0, 10**12 + 1)),
    "significance": ((EPSILON, 1 - EPSILON), (0, 1)),
}
BOUNDS = [
    (model, key, *values)
    for model, keys in ((TrainingConfig, TRAINING), (PromotionConfig, PROMOTION))
    for key, values in keys.items()
]


@pytest.mark.parametrize(("model", "key", "accepted", "rejected"), BOUNDS, ids=[bound[1] for bound in BOUNDS])
def test_bounds_of_every_key(
    model: type[BaseModel], key: str, accepted: tuple[Any, ...], rejected: tuple[Any, ...]
) -> None:
    for value in accepted:
        assert getattr(model.model_validate({key: value}), key) == value
    for value in rejected:
        with pytest.raises(ValidationError, match=key):
            model.model_validate({key: value})


def test_every_key_has_bounds() -> None:
    assert set(TRAINING) == set(TrainingConfig.model_fields)
    assert set(PROMOTION) == set(PromotionConfig.model_fields)


def test_one_hidden_layer_has_one_form() -> None:
    assert TrainingConfig(hidden_units=[64]) == TrainingConfig(hidden_units=64)
    assert TrainingConfig(hidden_units=[64, 32]).layer_units == (64, 32)


def test_only_adamw_has_weight_decay_by_default() -> None:
    assert TrainingConfig(optimizer="adamw") == TrainingConfig()
    assert TrainingConfig(optimizer="adam").weight_decay == 0
    assert TrainingConfig(optimizer="sgd", weight_decay=0.1).weight_decay == 0.1


@pytest.mark.parametrize("model", [TrainingConfig, PromotionConfig])
def test_rejects_an_unknown_key_by_name(model: type[BaseModel]) -> None:
    with pytest.raises(ValidationError, match="epoch\n"):
        model.model_validate({"epoch": 3})


@pytest.mark.parametrize("model", [TrainingConfig, PromotionConfig])
def test_configurations_are_frozen(model: type[BaseModel]) -> None:
    configuration = model()
    with pytest.raises(ValidationError):
        setattr(configuration, next(iter(model.model_fields)), 3)


def test_bounds_of_worker_seconds() -> None:
    seconds = TypeAdapter(WorkerSeconds)
    assert [seconds.validate_python(value) for value in (1, 86_400)] == [1, 86_400]
    for value in (0.9, 86_401):
        with pytest.raises(ValidationError):
            seconds.validate_python(value)


@pytest.mark.parametrize(
    ("budget", "rows", "allowed"),
    [
        *((0, 100, 0), (7, 3, 7), ("7", 100, 7), ("0%", 100, 0), ("100%", 3, 3), ("1%", 99, 0), ("1%", 100, 1)),
        *(("0.5%", 60_000, 300), ("0.29%", 100_000, 290), ("33.333333333%", 3, 0), ("33.4%", 3, 1), ("100.0%", 3, 3)),
        *((10**12 - 1, 3, 10**12 - 1), ("9" * 12, 3, 10**12 - 1)),
    ],
)
def test_allowed_bad_rows(budget: BadRows, rows: int, allowed: int) -> None:
    assert TypeAdapter(BadRows).validate_python(budget) == budget
    assert allowed_bad_rows(budget, rows) == allowed


@pytest.mark.parametrize(
    "budget",
    [
        *(-1, 1.5, 5.0, True, "few", "-1", "+5", "1.5", "5.0", "1_0", " 7 ", "101%", "100.5%", "100.01%", "1e1%"),
        *("%", "5 %", "", "5%\n", None, 10**12, "1" * 13),
    ],
)
def test_rejects_an_invalid_budget(budget: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(BadRows).validate_python(budget)


def test_folder_precedence_is_flag_variable_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    assert artifacts_folder() == PROJECT_ROOT / "artifacts"
    assert data_folder() == PROJECT_ROOT / "data"
    monkeypatch.setenv("FASHION_ANN_ARTIFACTS_DIR", "/of/variable")
    monkeypatch.setenv("FASHION_ANN_DATA_DIR", "/of/variable")
    assert artifacts_folder() == data_folder() == Path("/of/variable")
    assert artifacts_folder("/of/flag") == Path("/of/flag")


def test_a_relative_folder_becomes_absolute() -> None:
    assert data_folder("here") == Path.cwd() / "here"


def test_rejects_a_path_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", "~no-user-of-this-name/x"):
        with pytest.raises(WrongUsage, match="folder"):
            artifacts_folder(path)


@field_fault(
    "stray files and bad values",
    "A path in a flag, variable or flow parameter begins with ~",
    "It is the home folder; an unknown user is wrong usage",
)
def test_a_tilde_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("FASHION_ANN_DATA_DIR", "~/data")
    assert data_folder() == artifacts_folder("~/data") == expanded(Path("~/data")) == Path("/home/someone/data")
    assert expanded("a~/b") == Path("a~/b")
    with pytest.raises(WrongUsage, match=r"^~no-such-user/x: the home folder is unknown .*Give a path without ~\.$"):
        expanded("~no-such-user/x")


def test_an_unknown_home_is_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 2**31)  # a user without an entry, as in some containers
    with pytest.raises(WrongUsage, match="~/x: the home folder is unknown"):
        expanded("~/x")


def test_the_default_data_folder_is_data_of_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("schemas.config.PROJECT_ROOT", tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    assert is_default_data_folder(tmp_path / "link" / "data")
    assert not is_default_data_folder(tmp_path / "data" / "x")
    (tmp_path / "data").symlink_to("elsewhere")
    assert not is_default_data_folder(tmp_path / "data")
    assert not is_default_data_folder(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("artifacts", "data", "message"),
    [
        ("a", "a/data", "The data folder .*/a/data is inside the artifacts folder .*/a"),
        ("a", "a/x/y/", "The data folder .* is inside"),
        ("a/x", "a", "The artifacts folder .* is inside the data folder"),
        ("a", "a", "inside"),
        ("a", "b/../a/x", "inside"),
        ("link", "a/x", "inside"),  # a link to a
        ("b", "link/x", None),
        ("a", "ab", None),
        ("a", "b", None),
    ],
)
def test_data_and_artifacts_are_separate(tmp_path: Path, artifacts: str, data: str, message: str | None) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    paths = tmp_path / artifacts, Path(f"{tmp_path}/{data}")
    if message is None:
        assert separate_folders(*paths) == paths
        return
    with pytest.raises(WrongUsage, match=message):
        separate_folders(*paths)


def test_the_default_folders_are_separate() -> None:
    assert separate_folders() == (PROJECT_ROOT / "artifacts", PROJECT_ROOT / "data")
    with pytest.raises(WrongUsage, match=r"/data is inside the artifacts folder"):
        separate_folders(PROJECT_ROOT)


def test_rejects_an_empty_folder_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASHION_ANN_DATA_DIR", " ")
    with pytest.raises(WrongUsage, match="FASHION_ANN_DATA_DIR"):
        data_folder()


@pytest.mark.parametrize(
    ("space", "reason"),
    [
        ({}, "at least one setting"),
        ({"seed": [1, 2]}, "seed is no setting that can be searched"),
        ({"validation_size": [600]}, "validation_size is no setting"),
        ({"units": [1]}, "units is no setting"),
        ({"dropout": 0.1}, "valid dictionary or instance of Range"),
        ({"dropout": []}, "at least 1 item"),
        ({"dropout": {"low": 0.0, "high": 1.0}}, "less than 1"),
        ({"dropout": {"low": 0.2, "high": 0.1}}, "low must be below high"),
        ({"learning_rate": {"low": 0.0, "high": 0.1, "log": True}}, "above 0 with log"),
        ({"epochs": {"low": 1, "high": math.inf}}, "finite number"),
        ({"optimizer": {"low": 0, "high": 1}}, "adamw"),
        ({"hidden_units": [[64, 0]]}, "greater than or equal to 1"),
    ],
)
def test_a_faulty_search_space_is_rejected(space: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        TypeAdapter(SearchSpace).validate_python(space)


def test_the_default_space_is_valid() -> None:
    assert TypeAdapter(SearchSpace).validate_python(DEFAULT_SPACE) == DEFAULT_SPACE
