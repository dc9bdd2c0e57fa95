from __future__ import annotations

import contextlib
import json
import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway import json_text
from gateway.errors import BadRequest
from gateway.json_text import MAX_DEPTH, dump, parse_provider, parse_request

TEXT = st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=30,
)


@given(VALUES, st.booleans())
def test_what_can_be_stored_is_read_as_the_standard_library_reads_it(value: Any, ascii_only: bool) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert parse_request(raw) == value
    assert parse_provider(raw) == value
    assert parse_request(dump(value)) == value


@given(st.binary(max_size=64))
def test_no_bytes_raise_anything_but_400(raw: bytes) -> None:
    with contextlib.suppress(BadRequest):
        parse_request(raw)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b'{"a":', "not valid JSON"),
        (b"{'a': 1}", "not valid JSON"),
        (b'{"a":1} x', "not valid JSON"),
        (b'{"a":"\n"}', "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        ('{"a":1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "not UTF-8"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":-Infinity}', "-Infinity"),
        (b'{"a":1e999}', "too large"),
        (b'{"a":-1e999}', "too large"),
        (b'{"a":' + b"9" * 5000 + b"}", "too long"),
    ],
)
def test_what_is_not_json_is_400(raw: bytes, told: str) -> None:
    with pytest.raises(BadRequest, match=told) as caught:
        parse_request(raw)
    assert caught.value.code == "invalid_json"


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (b'{"messages":[{"content":"a"},{"content":"b\\u0000c"}]}', "messages.1.content"),
        (b'{"messages":[[],["x","\\u0000"]]}', "messages.1.1"),
        (b'{"a":{"b":{}},"c":"\\ud800"}', "c"),
        (b'{"c":"\\uDFFFx"}', "c"),
        (b'{"a":{"\\u0000":1}}', "a"),
        (b'{"\\ud83d":1}', None),
        (b'"\\u0000"', None),
    ],
)
def test_text_that_the_database_cannot_hold_is_400_and_named(raw: bytes, param: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_request(raw)
    assert caught.value.param == param


def test_what_is_only_passed_on_need_not_be_storable_and_is_not_deep_either() -> None:
    assert parse_request(b'{"\\u0000":"\\ud800"}', storable=False) == {"\0": "\ud800"}
    with pytest.raises(BadRequest):
        parse_request(b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2), storable=False)


def test_escaped_pairs_and_escaped_backslashes_are_text() -> None:
    assert parse_request(b'{"a":"\\ud83d\\ude00","b":"\\\\u0000","c":"\\\\ud800"}') == {
        "a": "😀",
        "b": "\\u0000",
        "c": "\\ud800",
    }


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 5_000, 500_000])
def test_deep_nesting_is_400_and_no_recursion_error(opening: bytes, depth: int) -> None:
    closing = b"]" if opening == b"[" else b"}"
    for raw in (opening * depth, opening * depth + b"1" + closing * depth):
        with pytest.raises(BadRequest):
            parse_request(raw)


def test_the_depth_limit_is_where_it_is_said_to_be() -> None:
    assert parse_request(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    with pytest.raises(BadRequest, match=f"{MAX_DEPTH} levels"):
        parse_request(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))


def test_wide_is_not_deep() -> None:
    wide = {"messages": [{"role": "user", "content": [{"a": []}]} for _ in range(500)]}
    assert parse_request(json.dumps(wide).encode()) == wide


def test_a_name_given_twice_is_400() -> None:
    with pytest.raises(BadRequest, match="'max_tokens' twice") as caught:
        parse_request(b'{"max_tokens":1,"model":"m","max_tokens":100000}')
    assert caught.value.param == "max_tokens"


def test_the_error_never_quotes_the_body() -> None:
    with pytest.raises(BadRequest) as caught:
        parse_request(b'{"prompt":"my secret" oops')
    assert "secret" not in caught.value.message


def test_a_providers_nan_becomes_null_and_deep_nesting_a_value_error() -> None:
    assert parse_provider(b'{"a":NaN,"b":[-Infinity,1e999],"a2":1,"a2":2}') == {
        "a": None,
        "b": [None, None],
        "a2": 2,
    }
    with pytest.raises(ValueError, match="deeply"):
        parse_provider(b"[" * 500_000)


def test_dump_keeps_what_utf8_cannot_carry_as_an_escape() -> None:
    assert dump({"a": "é😀"}) == '{"a":"é😀"}'.encode()
    assert json.loads(dump({"a": "\ud83d"})) == {"a": "\ud83d"}
    with pytest.raises(ValueError, match="JSON"):
        dump({"a": math.nan})


def test_exact_numbers_are_what_the_client_wrote() -> None:
    assert parse_request(b'{"usd":0.1,"n":3,"e":2.50e1}', exact=True) == {
        "usd": Decimal("0.1"),
        "n": 3,
        "e": Decimal("25.0"),
    }


@pytest.mark.parametrize("number", [b"1e999999", b"-1e65", b"1e-65", b"1e99999999999999999999", b"0.1e70"])
def test_an_exact_number_has_a_bounded_exponent(number: bytes) -> None:
    with pytest.raises(BadRequest, match="too large"):
        parse_request(b'{"usd":' + number + b"}", exact=True)


def test_dotted_path() -> None:
    assert json_text.dotted(("messages", 0, "content")) == "messages.0.content"


@given(
    st.one_of(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        ).map(json.dumps),
        st.text(alphabet='0123456789.-+eE[]{}",:NaInfity \\ud8', max_size=12),
        st.integers(290, 320).map(lambda digits: f"[{'9' * digits}.0, 1e{digits}, 0.{'0' * digits}1]"),
    )
)
@example('{"a": 1, "a": 2}')
@example('["\\ud800", "\\ud83d\\ude00", NaN, 1e400, -1E+999, 123456789012345678901234567890]')
def test_a_providers_json_is_what_the_standard_library_reads(text: str) -> None:
    def finite(number: str) -> float | None:
        return None if math.isinf(float(number)) else float(number)

    try:
        expected = json.loads(text, parse_float=finite, parse_constant=lambda _: None)
    except ValueError:
        with pytest.raises(ValueError):  # noqa: PT011 - its message is the decoder's
            parse_provider(text)
    else:
        assert parse_provider(text) == parse_provider(text.encode("utf-8")) == expected
        assert repr(parse_provider(text)) == repr(expected)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
@example({"a": "NaN, not Infinity"})
@example([[[[]]]] * 3)
def test_what_is_dumped_is_what_the_standard_library_reads(value: Any) -> None:
    assert json.loads(dump(value)) == value


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_number_is_dumped_that_json_has_not(number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        dump({"NaN": ["Infinity", number]})
