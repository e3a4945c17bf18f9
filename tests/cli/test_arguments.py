import pytest
from pydantic import BaseModel, model_serializer

from cli.arguments import Terminated, stops_raised


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Terminated])
def test_a_signal_within_a_serializer_is_raised(stop: type[BaseException]) -> None:
    class Stopped(BaseModel):
        @model_serializer
        def serialize(self) -> None:
            raise stop

    with pytest.raises(stop), stops_raised():
        Stopped().model_dump_json()
    with pytest.raises(stop), stops_raised():
        Stopped().model_dump()


def test_other_errors_of_a_serializer_stay() -> None:
    class Broken(BaseModel):
        @model_serializer
        def serialize(self) -> None:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"), stops_raised():
        Broken().model_dump_json()
