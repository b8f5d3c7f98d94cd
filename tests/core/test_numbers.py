"""Numbers come back as they were sent, or are refused with their place."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from taskyard import handler
from taskyard.storable import find_inexact, find_unstorable, find_unstorable_json, read_json, to_json

#: Each is kept: digit by digit if it is whole, else as the 64-bit float whose own digits these are.
KEPT = [
    *("0", "-7", "9007199254740993", "18446744073709551616", "1" * 4000, "-" + "9" * 4000),
    *("0.1", "0.10", "1.0", "1E5", "1e22", "1e23", "100000000000000000000000.0", "0.30000000000000004", "12.345678901234567", "0e-400", "0.0"),
    *("1e308", "1.7976931348623157e308", "5e-324", "2.2250738585072014e-308", "2.50000000000000000000"),
    # As C prints a float with %.17g and %.20f.
    *("0.10000000000000001", "0.10000000000000000555", "9007199254740992.0"),
]
CHANGED = [
    *("12345678901234567890.123456789", "9007199254740993.0", "9007199254740993e0", "3.141592653589793238462643", "0.1000000000000000000000001"),
    *("1e-400", "-1e-400", "1.23456789e-320", "1e400", "-1E+400", "0." + "0" * 400 + "1", "1e-99999999999999999999", "1" * 4001 + ".0"),
]


@pytest.mark.parametrize("number", KEPT, ids=lambda number: number[:40])
def test_a_number_that_is_kept_is_let_through(number: str) -> None:
    text = f'{{"a": [1, {number}], "b": {number}}}'
    assert find_inexact(text.encode()) is None
    kept = json.loads(to_json(read_json(text)))["b"]
    assert kept == (int(number) if number.lstrip("-").isdecimal() else float(number))


@pytest.mark.parametrize("number", CHANGED, ids=lambda number: number[:40])
@pytest.mark.parametrize(("around", "pointer"), [('{"a~/": [1, %s ]}', "/a~0~1/1"), ("%s", ""), ('{"x":{"y":\n%s}, "z": 1e-400}', "/x/y")])
def test_a_number_that_would_change_is_found_with_its_place(number: str, around: str, pointer: str) -> None:
    found = find_inexact((around % number).encode())
    assert found is not None
    assert found[0] == pointer
    with pytest.raises(ValueError, match="number"):
        read_json(around % number)


@pytest.mark.parametrize(
    "words", ["1e-400", "12345678901234567890.123456789", ", 1e-400", "\u00e9 [3.141592653589793238462643]", "01a207b1-3bb7-72d7-b038-6e026bc18488"]
)
def test_text_that_looks_like_such_a_number_is_text(words: str) -> None:
    assert find_inexact(json.dumps({"text": words, words: [words, 0.1 + 0.2]}, ensure_ascii=False).encode()) is None


def test_a_negative_zero_is_found_where_it_would_lose_its_sign() -> None:
    assert find_unstorable({"a": [0.0, 0, -0.5, -0.0]}, exactly=True) == ("/a/3", "a negative zero, which would be kept as 0.0; send 0.0")
    assert find_unstorable([0.0, 0, False, -5e-324], exactly=True) is None
    # What has been done is not undone for it: results keep it as 0.0.
    assert find_unstorable_json(to_json([-0.0, "NaN"])) is None


@pytest.mark.parametrize("text", ['{"a": 1, "b": {"c": 1, "c": 2}}', '{"a": 1, "\\u0061": 1}'])
def test_a_name_that_is_there_twice_is_not_read(text: str) -> None:
    with pytest.raises(ValueError, match="is there twice"):
        read_json(text)


@pytest.mark.parametrize("value", [{}, [], {"a": None, "b": ["x", {"c": 1.5}]}, "text", None])
def test_what_is_read_is_what_was_written(value: Any) -> None:
    assert read_json(json.dumps(value)) == value


class Written(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="strings")

    value: float
    note: str | None


class Reading(BaseModel):
    value: float | None = Field(serialization_alias="v")
    others: tuple[float, ...] = ()


@pytest.mark.parametrize(
    ("result", "place"),
    [
        (Reading(value=float("nan")), "/v: expected a finite number, not nan"),
        (Reading(value=None, others=(1.0, float("-inf"))), "/others/1: expected a finite number, not -inf"),
    ],
)
def test_a_result_whose_number_json_does_not_have_is_refused_with_its_place(result: Reading, place: str) -> None:
    @handler("numbers.read")
    def read(payload: int) -> Reading:
        return result

    with pytest.raises(ValueError, match=re.escape(place)):
        read.dump_result(result)


def test_a_result_may_have_nulls_and_a_number_that_its_model_writes_as_a_text() -> None:
    @handler("numbers.write")
    def write(payload: int) -> Written:
        return Written(value=float("inf"), note=None)

    assert write.dump_result(write(1)) == '{"value":"Infinity","note":null}'
