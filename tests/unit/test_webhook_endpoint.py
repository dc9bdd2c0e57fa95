from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest

from gateway import service_keys
from gateway.errors import Unprocessable
from gateway.sealing import SealError
from gateway.webhook_endpoint import check_webhook_url, open_secret, seal_secret, signing_key

if TYPE_CHECKING:
    from collections.abc import Sequence

MASTER = {"b": bytes(range(32)), "a": bytes(range(32, 64))}
SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()


def test_what_is_sealed_opens_as_the_key_to_sign_with() -> None:
    assert open_secret(seal_secret(SECRET, master_keys=MASTER), master_keys=MASTER) == bytes(range(24))
    plain = "a plain secret with 24+ characters"
    assert open_secret(seal_secret(plain, master_keys=MASTER), master_keys=MASTER) == plain.encode()


def test_sealed_provider_key_does_not_open_as_the_webhook_secret() -> None:
    sealed = service_keys.seal(
        SECRET, master_keys=MASTER, service_id=1, provider="openai", base_url="https://api.openai.com"
    )
    with pytest.raises(SealError) as caught:
        open_secret(sealed, master_keys=MASTER)
    assert SECRET not in (caught.value.detail or "")


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "x" * 23,
        "x" * 65,
        "whsec_",
        "whsec_" + base64.b64encode(bytes(23)).decode(),
        "whsec_" + base64.b64encode(bytes(65)).decode(),
        "whsec_" + base64.b64encode(bytes(24)).decode()[:-1],
        "whsec_" + base64.urlsafe_b64encode(b"\xff" * 24).decode(),
    ],
)
def test_short_long_or_garbled_secret_is_refused(secret: str) -> None:
    with pytest.raises(ValueError, match="must"):
        signing_key(secret)


@pytest.mark.parametrize(
    "url",
    [
        "https://8.8.8.8",
        "https://8.8.8.8/",
        "https://8.8.8.8/hooks/?token=a%20b&x=/y",
        "https://hooks.example.com:8443/in",
    ],
)
async def test_url_is_called_as_it_was_given(url: str) -> None:
    assert await check_webhook_url(url, resolve=_outside) == url


@pytest.mark.parametrize(
    "url",
    [
        "http://8.8.8.8/",
        "https://10.0.0.1/hook?x=1",
        "https://localhost/hook",
        "https://inside.example.com/hook?x=1",
        "https://user:secret@hooks.example.com/",
        "https://hooks.example.com/?a#b",
        "https://hooks.example.com/?a?b",
        "https://hooks.example.com/?a b",
        "https://hooks.example.com/?\u00e9",
        "https://hooks.example.com/?a\r\nhost: b",
        "https://hooks.example.com/?" + "a" * 2000,
        "?https://hooks.example.com",
        "",
    ],
)
async def test_url_that_is_none_or_leads_inside_is_refused_by_its_own_name(url: str) -> None:
    with pytest.raises(Unprocessable) as caught:
        await check_webhook_url(url, resolve=_inside)
    assert caught.value.param == "webhook_url"
    assert "base_url" not in caught.value.message


async def _outside(_host: str, _port: int) -> Sequence[str]:
    return ["8.8.8.8"]


async def _inside(_host: str, _port: int) -> Sequence[str]:
    return ["8.8.8.8", "169.254.169.254"]
