from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.service_keys import ServiceKeyError, is_current, open_sealed, seal

MASTER = {"b": bytes(range(32)), "a": bytes(range(32, 64))}
SECRET = "sk-provider-0123456789abcdef"
SERVICE = {"service_id": 7, "provider": "openai", "base_url": "https://api.openai.com/v1"}


def _seal(secret: str = SECRET, **changes: object) -> str:
    return seal(secret, **{"master_keys": MASTER, **SERVICE, **changes})  # type: ignore[arg-type]


def _open(sealed: str, **changes: object) -> str:
    return open_sealed(sealed, **{"master_keys": MASTER, **SERVICE, **changes})  # type: ignore[arg-type]


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200))
def test_what_is_sealed_opens_again(secret: str) -> None:
    assert _open(_seal(secret)) == secret


def test_the_form_is_version_key_id_nonce_ciphertext() -> None:
    version, key_id, nonce, ciphertext = _seal().split(".")
    assert (version, key_id) == ("v1", "b")
    assert len(base64.urlsafe_b64decode(nonce)) == 12
    # 16 bytes of tag after the text.
    assert len(base64.urlsafe_b64decode(ciphertext + "==")) == len(SECRET) + 16
    assert SECRET not in _seal()


def test_no_two_seals_are_alike() -> None:
    assert len({_seal() for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "same", ["https://api.openai.com", "https://API.OpenAI.com:443/v2/", "https://api.openai.com./other"]
)
def test_another_path_of_the_same_origin_opens(same: str) -> None:
    assert _open(_seal(), base_url=same) == SECRET


@pytest.mark.parametrize(
    "change",
    [
        {"base_url": "https://evil.example/v1"},
        {"base_url": "https://api.openai.com.evil.example/v1"},
        {"base_url": "https://api.openai.com:444/v1"},
        {"base_url": "http://api.openai.com/v1"},
        {"service_id": 8},
        {"provider": "groq"},
        {"master_keys": {"b": bytes(32)}},
    ],
)
def test_another_origin_row_provider_or_master_key_does_not_open(change: dict[str, object]) -> None:
    with pytest.raises(ServiceKeyError) as caught:
        _open(_seal(), **change)
    _is_internal_and_silent(caught.value)


@given(st.data())
def test_any_change_is_refused(data: st.DataObject) -> None:
    sealed = _seal()
    position = data.draw(st.integers(min_value=0, max_value=len(sealed) - 1))
    character = data.draw(st.sampled_from("abXY019-_.!é\n "))
    tampered = sealed[:position] + character + sealed[position + 1 :]
    if base64_equal(tampered, sealed):
        return
    with pytest.raises(ServiceKeyError) as caught:
        _open(tampered)
    _is_internal_and_silent(caught.value)


def base64_equal(left: str, right: str) -> bool:
    """Whether two texts differ in nothing but the spare bits at the end of the base64."""
    try:
        decoded = [
            [base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in text.split(".")[2:]]
            for text in (left, right)
        ]
    except ValueError:
        return False
    return left.split(".")[:2] == right.split(".")[:2] and decoded[0] == decoded[1] and left.isascii()


@pytest.mark.parametrize(
    "text", ["", "v1", "v1.b", "v2.b.AAAA.AAAA", "v1.b.AAAA", "v1.b.AAAA.AAAA.A", "v1.b..", SECRET]
)
def test_what_is_no_sealed_key_is_one_clear_error(text: str) -> None:
    with pytest.raises(ServiceKeyError) as caught:
        _open(text)
    _is_internal_and_silent(caught.value)


def test_an_unknown_master_key_is_named() -> None:
    with pytest.raises(ServiceKeyError) as caught:
        _open(_seal(), master_keys={"c": bytes(32)})
    assert "'b'" in (caught.value.detail or "")
    assert "SLUICE_MASTER_KEYS" in (caught.value.detail or "")


def test_rotation_opens_the_old_and_seals_under_the_new() -> None:
    old = _seal(master_keys={"a": MASTER["a"]})
    assert old.startswith("v1.a.")
    assert _open(old) == SECRET
    assert not is_current(old, MASTER)
    assert is_current(_seal(), MASTER)


def test_without_a_master_key_nothing_is_sealed() -> None:
    with pytest.raises(ServiceKeyError) as caught:
        _seal(master_keys={})
    assert "SLUICE_MASTER_KEYS" in (caught.value.detail or "")


def _is_internal_and_silent(error: ServiceKeyError) -> None:
    assert error.status == 500
    for text in (error.message, error.detail or "", repr(error)):
        assert SECRET not in text
    assert error.__cause__ is None


def test_importing_does_not_load_cryptography() -> None:
    code = "import sys, gateway.service_keys; sys.exit('cryptography' in sys.modules)"
    environ = {"PYTHONPATH": str(Path(__file__).parents[2] / "functions")}
    assert subprocess.run([sys.executable, "-c", code], env=environ, check=False).returncode == 0
