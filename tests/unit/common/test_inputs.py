"""What a client sends is taken only if it can be stored."""

from typing import Any

import pytest
from pydantic import Field, ValidationError

from libs.common.inputs import MAX_DEPTH, Input


class Anything(Input):
    data: dict[str, Any] = Field(default_factory=dict)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value", ["a\x00b", "\ud800", {"\ud800": 1}, 2**63, -(2**63) - 1, [[2**70]], nested(MAX_DEPTH)], ids=ascii
)
def test_what_no_table_could_hold_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        Anything.model_validate({"data": {"it": value}})


@pytest.mark.parametrize(
    "value", ["\U0001f40e", 2**63 - 1, -(2**63), 0.5, None, True, nested(MAX_DEPTH - 2)], ids=ascii
)
def test_everything_else_is_taken_as_it_came(value: Any) -> None:
    assert Anything.model_validate({"data": {"it": value}}).data == {"it": value}
