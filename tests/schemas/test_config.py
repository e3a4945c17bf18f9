from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from schemas.config import PROJECT_ROOT, BadRows, TrainingConfig, allowed_bad_rows, artifacts_folder, data_folder
from schemas.errors import WrongUsage


def test_an_unknown_key_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="epoch\n"):
        TrainingConfig.model_validate({"epoch": 3})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("epochs", 0), ("batch_size", 0), ("learning_rate", 0), ("learning_rate", 1.5), ("weight_decay", -0.1)),
        *(("dropout", 1), ("dropout", -0.1), ("validation_size", 0), ("early_stopping", 0), ("seed", -1)),
        *(("seed", 2**32), ("learning_rate", float("nan"))),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(key: str, value: float) -> None:
    with pytest.raises(ValidationError, match=key):
        TrainingConfig.model_validate({key: value})


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError):
        TrainingConfig().epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("budget", "rows", "allowed"),
    [
        *((0, 100, 0), (7, 3, 7), ("7", 100, 7), ("0%", 100, 0), ("100%", 3, 3), ("1%", 99, 0), ("1%", 100, 1)),
        *(("0.5%", 60_000, 300), ("0.29%", 100_000, 290), ("33.333333333%", 3, 0), ("33.4%", 3, 1), ("100.0%", 3, 3)),
    ],
)
def test_a_budget_is_a_number_of_rows_or_the_whole_rows_of_a_share(budget: BadRows, rows: int, allowed: int) -> None:
    assert TypeAdapter(BadRows).validate_python(budget) == budget
    assert allowed_bad_rows(budget, rows) == allowed


@pytest.mark.parametrize(
    "budget",
    [
        *(-1, 1.5, 5.0, True, "few", "-1", "+5", "1.5", "5.0", "1_0", " 7 ", "101%", "100.5%", "100.01%", "1e1%"),
        *("%", "5 %", "", "5%\n", None),
    ],
)
def test_what_is_no_budget_is_refused(budget: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(BadRows).validate_python(budget)


def test_folders_come_from_the_flag_then_the_variable_then_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    assert artifacts_folder() == PROJECT_ROOT / "artifacts"
    assert data_folder() == PROJECT_ROOT / "data"
    monkeypatch.setenv("FASHION_ANN_ARTIFACTS_DIR", "/of/variable")
    monkeypatch.setenv("FASHION_ANN_DATA_DIR", "/of/variable")
    assert artifacts_folder() == data_folder() == Path("/of/variable")
    assert artifacts_folder("/of/flag") == Path("/of/flag")


def test_a_relative_folder_is_made_absolute() -> None:
    assert data_folder("here") == Path.cwd() / "here"


def test_a_file_or_an_unknown_home_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for given in (tmp_path / "file", "~nobody-has-this-name/x"):
        with pytest.raises(WrongUsage, match="folder"):
            artifacts_folder(given)


def test_an_empty_folder_name_is_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASHION_ANN_DATA_DIR", " ")
    with pytest.raises(WrongUsage, match="FASHION_ANN_DATA_DIR"):
        data_folder()
