"""The operator's webhook: events signed as Standard Webhooks has it, and delivered at least once.

Each event goes out as `POST {"id", "type", "created_at", "data"}` with the headers webhook-id,
webhook-timestamp and webhook-signature (https://www.standardwebhooks.com). An event that is sent again, as it
may be, has the same id: receivers go by that. Anything but a 2xx within ten seconds is a failure, and is
tried again for some three days; a redirect is not followed.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import socket
import time
from typing import TYPE_CHECKING, Any

import httpx

from gateway import json_text
from gateway.errors import GatewayError
from gateway.outbox import LEASE_SECONDS, MOST_ERROR_CHARS, Attempt
from gateway.webhook_endpoint import check_webhook_url, open_secret

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.database.rpc import Database
    from gateway.service_urls import Resolver
    from gateway.settings import Settings

ATTEMPT_SECONDS = 10.0
"""How long an attempt may take, from the resolving of the host to the status."""

_MOST_ADDRESSES = 4


def sign(key: bytes, identity: str, timestamp: int, body: bytes) -> str:
    """Return the webhook-signature of a message sent at `timestamp`, in seconds since 1970."""
    signed = b".".join((identity.encode(), str(timestamp).encode(), body))
    return f"v1,{base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()}"


class WebhookSender:
    """Sends messages to the webhook, and says what came of it."""

    def __init__(
        self, settings: Settings, http: httpx.AsyncClient, *, resolve: Resolver | None = None
    ) -> None:
        self._settings = settings
        self._http = http
        self._resolve = resolve or _resolve

    async def send(self, url: str, sealed_secret: str, message: Mapping[str, Any]) -> Attempt:
        """Send a message with the keys id, type, created_at and data.

        Whatever may be wrong with the webhook is in the Attempt; nothing is raised for it.
        """
        try:
            key = open_secret(sealed_secret, master_keys=self._settings.master_keys)
            async with asyncio.timeout(ATTEMPT_SECONDS):
                status = await self._post(url, key, message)
        except TimeoutError:
            return Attempt(None, f"no answer within {ATTEMPT_SECONDS:.0f} s")
        except GatewayError as error:
            return Attempt(None, (error.detail or error.message)[:MOST_ERROR_CHARS])
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            # Neither names the URL, whose query may be a secret.
            return Attempt(None, f"{type(error).__name__}: {error}"[:MOST_ERROR_CHARS])
        if httpx.codes.is_success(status):
            return Attempt(status, None)
        redirects = ", and redirects are not followed" if httpx.codes.is_redirect(status) else ""
        return Attempt(status, f"the receiver answered {status}{redirects}")

    async def _post(self, url: str, key: bytes, message: Mapping[str, Any]) -> int:
        """Return the status. What was checked is what is connected to: the host is resolved once."""
        addresses: list[str] = []

        async def resolve(host: str, port: int) -> Sequence[str]:
            addresses.extend(await self._resolve(host, port))
            return addresses

        await check_webhook_url(url, allow_private=self._settings.allow_private_urls, resolve=resolve)
        target = httpx.URL(url)
        body = json_text.dump({name: message[name] for name in ("id", "type", "created_at", "data")})
        timestamp = int(time.time())
        headers = {
            "host": target.netloc.decode(),
            "content-type": "application/json",
            "user-agent": f"Sluice/{self._settings.version}",
            "webhook-id": message["id"],
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(key, message["id"], timestamp, body),
        }
        hosts = addresses[:_MOST_ADDRESSES] or [target.host]
        for host in hosts[:-1]:
            try:
                return await self._post_to(target.copy_with(host=host), target.host, headers, body)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue  # nothing was sent yet
        return await self._post_to(target.copy_with(host=hosts[-1]), target.host, headers, body)

    async def _post_to(self, url: httpx.URL, name: str, headers: Mapping[str, str], body: bytes) -> int:
        request = self._http.build_request(
            "POST", url, headers=headers, content=body, extensions={"sni_hostname": name}
        )
        response = await self._http.send(request, stream=True)
        # Its body is nobody's: it is not read, however long it is.
        await response.aclose()
        return response.status_code


class WebhookChannel:
    """Sends what is due to the webhook that is set when it is claimed."""

    def __init__(self, database: Database, sender: WebhookSender) -> None:
        self._database = database
        self._sender = sender

    async def claim(self, limit: int) -> Sequence[Mapping[str, Any]]:
        told = await self._database.claim_deliveries(limit=limit, lease_seconds=LEASE_SECONDS)
        return [{**delivery, "webhook": told} for delivery in told["deliveries"]]

    async def send(self, delivery: Mapping[str, Any]) -> Attempt:
        webhook = delivery["webhook"]
        return await self._sender.send(webhook["url"], webhook["secret"], delivery)

    async def finish(self, delivery: Mapping[str, Any], attempt: Attempt) -> str:
        told = await self._database.finish_delivery(
            delivery["event_id"],
            attempt=delivery["attempt"],
            delivered=attempt.delivered,
            status=attempt.status,
            error=attempt.error,
        )
        state: str = told["state"]
        return state


async def _resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]
