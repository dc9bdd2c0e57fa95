from __future__ import annotations

import hashlib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from gateway.auth import _checksum, api_key, bearer_token, is_key, key_hash, key_prefix, new_key
from gateway.errors import Unauthorized

BASE62 = string.digits + string.ascii_letters


def _headers(*pairs: tuple[str, str]) -> Headers:
    return Headers(raw=[(name.encode(), value.encode("latin-1")) for name, value in pairs])


def test_a_new_key_has_the_form() -> None:
    keys = {new_key() for _ in range(200)}
    assert len(keys) == 200
    for key in keys:
        assert len(key) == 43
        assert key.startswith("sk_")
        assert set(key[3:]) <= set(BASE62)
        assert is_key(key)


def test_the_checksum_is_the_crc32_of_the_random_part_in_base62() -> None:
    # The CRC-32 of 34 zeros is 662668069 = 44*62**4 + 52*62**3 + 30*62**2 + 14*62 + 41, with the digits
    # before the upper and the lower case: 0, i, q, U, E, f.
    assert is_key(f"sk_{'0' * 34}0iqUEf")
    assert not is_key(f"sk_{'0' * 34}iqUEf0")


@given(st.integers(min_value=3, max_value=42), st.sampled_from(BASE62))
def test_every_single_mistyped_character_is_seen(position: int, character: str) -> None:
    key = new_key()
    mistyped = key[:position] + character + key[position + 1 :]
    assert is_key(mistyped) == (mistyped == key)


@given(st.text(max_size=60))
def test_nothing_else_is_a_key(text: str) -> None:
    assert not is_key(text)


def test_other_makes_and_other_alphabets_are_no_keys() -> None:
    key = new_key()
    for other in (key.upper(), key.replace("sk_", "sk-"), f"{key} ", key[:-1], f"{key}0", "sk_" + "é" * 40):
        assert not is_key(other)


@pytest.mark.parametrize("random", ["é" * 34, "0" * 33 + "\u0660", "0" * 33 + "-", " " * 34])
def test_a_good_checksum_does_not_excuse_another_alphabet(random: str) -> None:
    assert not is_key(f"sk_{random}{_checksum(random)}")


def test_hash_and_prefix() -> None:
    key = new_key()
    assert key_hash(key) == hashlib.sha256(key.encode()).hexdigest()
    assert key_prefix(key) == f"{key[:9]}…"
    assert len(key_prefix(key)) == 10


@pytest.mark.parametrize("name", ["authorization", "Authorization", "x-api-key", "API-KEY"])
def test_a_key_is_found_in_each_of_the_three_headers(name: str) -> None:
    key = new_key()
    value = f"Bearer {key}" if name.lower() == "authorization" else key
    assert api_key(_headers((name.lower(), value))) == key


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_read_in_any_case_and_with_spaces(scheme: str) -> None:
    key = new_key()
    assert api_key(_headers(("authorization", f" {scheme}   {key} "))) == key


def test_the_same_key_in_several_headers_is_one_key() -> None:
    key = new_key()
    headers = _headers(("authorization", f"Bearer {key}"), ("x-api-key", key), ("api-key", key))
    assert api_key(headers) == key


@pytest.mark.parametrize(
    "pairs",
    [
        [("authorization", "Bearer {a}"), ("x-api-key", "{b}")],
        [("x-api-key", "{a}"), ("api-key", "{b}")],
        [("authorization", "Bearer {a}"), ("authorization", "Bearer {b}")],
        [("x-api-key", "{a}"), ("x-api-key", "{b}")],
    ],
)
def test_different_keys_are_401(pairs: list[tuple[str, str]]) -> None:
    first, second = new_key(), new_key()
    headers = _headers(*((name, value.format(a=first, b=second)) for name, value in pairs))
    with pytest.raises(Unauthorized, match="Different API keys") as caught:
        api_key(headers)
    assert first not in str(caught.value)


@pytest.mark.parametrize(
    "pairs", [[], [("authorization", "")], [("x-api-key", " ")], [("authorization", "Basic abc")]]
)
def test_no_key_is_401_and_says_what_is_expected(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(Unauthorized, match="Authorization: Bearer sk_") as caught:
        api_key(_headers(*pairs))
    assert caught.value.headers["www-authenticate"] == "Bearer"


def test_what_cannot_be_a_key_is_refused_as_an_unknown_key_is() -> None:
    messages = set()
    for token in ("sk-proj-abc", new_key()[:-1] + "!", "\xe9" * 43, "k" * 129, "a key with a \t in it"):
        with pytest.raises(Unauthorized) as caught:
            api_key(_headers(("authorization", f"Bearer {token}")))
        assert caught.value.code == "invalid_api_key"
        messages.add(caught.value.message)
    assert len(messages) == 1


def test_a_key_that_an_operator_chose_is_for_the_database_to_judge() -> None:
    chosen = "correct horse battery"
    assert api_key(_headers(("x-api-key", chosen))) == chosen
    # Little of it is shown: it may not have the randomness of ours.
    assert key_prefix(chosen) == "corr…"


def test_a_bearer_token_of_another_form_is_given_back() -> None:
    assert bearer_token(_headers(("authorization", "Bearer eyJ.a.b"))) == "eyJ.a.b"
