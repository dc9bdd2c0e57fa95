"""X-Ray: what a request waits for (its calls of the database and of a provider) as subsegments of its trace.

The documents go to the daemon that Lambda runs, as the X-Ray developer guide has it. Its SDK is not used: it
takes 0.5 s to import, as it imports botocore, and it keeps open subsegments on one stack, where calls that
overlap on an event loop close in the wrong order.
https://docs.aws.amazon.com/xray/latest/devguide/xray-api-sendingdata.html
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

TRACE_HEADER = "_X_AMZN_TRACE_ID"

_HEADER = b'{"format": "json", "version": 1}\n'
_CLIENT_ERROR, _THROTTLED, _SERVER_ERROR = 400, 429, 500


class Tracer:
    """Sends subsegments of the current invocation's trace, where that is sampled. Fails and waits never."""

    def __init__(self, daemon_address: str) -> None:
        """Take AWS_XRAY_DAEMON_ADDRESS: `host:port`, or `tcp:host:port udp:host:port`. Raises ValueError."""
        parts = dict(part.split(":", 1) for part in daemon_address.split() if part.count(":") > 1)
        host, _, port = parts.get("udp", daemon_address).rpartition(":")
        self._address = (host, int(port))
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def begin(self, name: str, request: httpx.Request) -> Subsegment | None:
        """Begin the subsegment of a call; None where the invocation is not traced."""
        header = dict(
            part.strip().partition("=")[::2] for part in os.environ.get(TRACE_HEADER, "").split(";")
        )
        if header.get("Sampled") != "1" or not header.get("Root") or not header.get("Parent"):
            return None
        return Subsegment(
            self._send,
            {
                "type": "subsegment",
                "name": name[:200],
                "id": secrets.token_hex(8),
                "trace_id": header["Root"],
                "parent_id": header["Parent"],
                "namespace": "remote",
                "start_time": time.time(),
                # Without its query and credentials.
                "http": {
                    "request": {
                        "method": request.method,
                        "url": f"{request.url.scheme}://{request.url.host}{request.url.path}",
                    }
                },
            },
        )

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _send(self, document: dict[str, Any]) -> None:
        try:
            self._socket.sendto(_HEADER + json.dumps(document).encode(), self._address)
        except OSError:
            # A trace is worth no request.
            return


class Subsegment:
    """One call, from its beginning to its end."""

    def __init__(self, send: Callable[[dict[str, Any]], None], document: dict[str, Any]) -> None:
        self._send = send
        self._document = document
        self._ended = False

    def answered(self, status: int) -> None:
        """Note the status, and how long the answer's head took."""
        took = time.time() - self._document["start_time"]
        self._document["http"]["response"] = {"status": status}
        self._document["annotations"] = {"seconds_to_head": round(took, 6)}
        self._document["throttle"] = status == _THROTTLED
        self._document["error"] = _CLIENT_ERROR <= status < _SERVER_ERROR
        self._document["fault"] = status >= _SERVER_ERROR

    def end(self, error: BaseException | None = None) -> None:
        """Send it. A second end is nothing."""
        if self._ended:
            return
        self._ended = True
        self._document["end_time"] = time.time()
        if error is not None:
            self._document["fault"] = True
            exception = {"id": secrets.token_hex(8), "type": type(error).__name__, "remote": True}
            self._document["cause"] = {"exceptions": [exception]}
        self._send(self._document)


class TracedTransport(httpx.AsyncBaseTransport):
    """Traces the calls that pass through it, each until its answer is closed. It owns its tracer."""

    def __init__(
        self, inner: httpx.AsyncBaseTransport, tracer: Tracer, name: Callable[[httpx.Request], str]
    ) -> None:
        self._inner = inner
        self._tracer = tracer
        self._name = name

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        subsegment = self._tracer.begin(self._name(request), request)
        if subsegment is None:
            return await self._inner.handle_async_request(request)
        try:
            response = await self._inner.handle_async_request(request)
        except BaseException as error:
            subsegment.end(error)
            raise
        subsegment.answered(response.status_code)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _TracedStream(response.stream, subsegment)
        return response

    async def aclose(self) -> None:
        self._tracer.close()
        await self._inner.aclose()


class _TracedStream(httpx.AsyncByteStream):
    def __init__(self, inner: httpx.AsyncByteStream, subsegment: Subsegment) -> None:
        self._inner = inner
        self._subsegment = subsegment

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._inner:
                yield part
        except Exception as error:
            self._subsegment.end(error)
            raise

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        finally:
            self._subsegment.end()


def host_of(request: httpx.Request) -> str:
    """Name a call after the host: what a provider's is known by."""
    return request.url.host


def function_of(request: httpx.Request) -> str:
    """Name a call after the SQL function: the last part of an RPC's path."""
    return request.url.path.rpartition("/")[2] or "database"
