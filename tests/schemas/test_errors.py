"""Every error can be created again from its message."""

import pickle

import pytest

from schemas import errors
from schemas.errors import FashionAnnError, UnreadableData
from tests.field_faults import field_fault

CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FashionAnnError)]


@pytest.mark.parametrize("kind", CLASSES)
@field_fault(
    "cause named but not observed",
    "A CSV becomes unreadable while a worker process reads it",
    "Each error class can be created from its message, so the user sees that message",
)
def test_an_error_is_rebuilt_from_its_message(kind: type[FashionAnnError]) -> None:
    error = kind("a message")
    assert str(error) == "a message"
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301  # Prefect stores the errors of flow runs like this
    assert (type(copied), str(copied)) == (kind, "a message")


def test_all_classes_are_listed() -> None:
    assert UnreadableData in CLASSES
