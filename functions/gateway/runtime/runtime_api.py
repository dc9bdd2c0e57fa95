"""The Lambda Runtime API, version 2018-06-01, over asyncio streams.

https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html

Each call has a connection of its own, which costs 0.1 ms on the loopback. A kept one may have died in a
freeze or a snapshot, and an answer that was paid for is not what should find that out.
"""

from __future__ import annotations

import asyncio
import base64
import json
import traceback
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from gateway.redaction import redact

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

_ROOT = "/2018-06-01/runtime"
_LINE_LIMIT = 1024 * 1024
"""The longest header: a client context has no documented bound."""
_MAX_STACK_CHARS = 8 * 1024
_STREAMED_CONTENT_TYPE = "application/vnd.awslambda.http-integration-response"
_ERROR_CONTENT_TYPE = "application/vnd.aws.lambda.error+json"
_ERROR_TYPE = "Lambda-Runtime-Function-Error-Type"
_ERROR_BODY = "Lambda-Runtime-Function-Error-Body"
_INVOCATION_ID = "Lambda-Runtime-Invocation-Id"
_ACCEPTED = 202
_OK = 200


class RuntimeApiError(Exception):
    """The Runtime API refused a call or broke it off. The process can't be sure of its state any more."""


class ResponseGoneError(OSError):
    """The reader of a streamed response has gone, or has refused it, before its end."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call of the function."""

    request_id: str
    deadline_ms: int
    """When the platform ends the function, in milliseconds since 1970."""
    event: bytes = field(repr=False)
    function_arn: str | None = None
    trace_id: str | None = None
    """X-Ray's header, `Root=…;Parent=…;Sampled=…`."""
    client_context: str | None = field(default=None, repr=False)
    cognito_identity: str | None = field(default=None, repr=False)
    tenant_id: str | None = None
    invocation_id: str | None = None
    """Goes back with the response, so that the platform can tell a late one from the current one."""


@dataclass(frozen=True, slots=True)
class FunctionError:
    """What the platform is told of a failure, in the form of the managed runtimes; no secret is in it."""

    type: str
    message: str
    stack: tuple[str, ...] = ()

    @classmethod
    def of(cls, error: BaseException, *, kind: str | None = None) -> Self:
        """Describe an exception; `kind` takes the place of its class's name, such as `Runtime.ExitError`."""
        stack = redact("".join(traceback.format_exception(error))[-_MAX_STACK_CHARS:])
        return cls(kind or type(error).__name__, redact(str(error)), tuple(stack.splitlines()))

    def as_json(self, request_id: str = "") -> bytes:
        """Return the document, as UTF-8."""
        document = {
            "errorMessage": self.message,
            "errorType": self.type,
            "requestId": request_id,
            "stackTrace": list(self.stack),
        }
        return json.dumps(document).encode()


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    """By lower-case name; of several, the last."""
    body: bytes


class RuntimeApi:
    """The calls, each on a connection of its own. They raise RuntimeApiError and OSError."""

    def __init__(self, address: str) -> None:
        """Take the `host:port` of AWS_LAMBDA_RUNTIME_API."""
        host, _, port = address.rpartition(":")
        self._address = address
        self._host = host.strip("[]")
        self._port = int(port)

    async def next_invocation(self) -> Invocation:
        """Wait for the next call, for as long as it takes: the process may be frozen meanwhile."""
        answer = await self._get("/invocation/next")
        headers = answer.headers
        try:
            return Invocation(
                request_id=headers["lambda-runtime-aws-request-id"],
                deadline_ms=int(headers["lambda-runtime-deadline-ms"]),
                event=answer.body,
                function_arn=headers.get("lambda-runtime-invoked-function-arn"),
                trace_id=headers.get("lambda-runtime-trace-id"),
                client_context=headers.get("lambda-runtime-client-context"),
                cognito_identity=headers.get("lambda-runtime-cognito-identity"),
                tenant_id=headers.get("lambda-runtime-aws-tenant-id"),
                invocation_id=headers.get(_INVOCATION_ID.lower()),
            )
        except (KeyError, ValueError) as error:
            raise RuntimeApiError("the next invocation lacks its id or its deadline") from error

    async def open_response(self, invocation: Invocation, gone: asyncio.Event) -> ResponseStream:
        """Return a streamed response of which nothing has been sent yet; it sets `gone` as said there."""
        reader, writer = await self._connect()
        head = self._head(
            f"/invocation/{invocation.request_id}/response",
            {
                "Lambda-Runtime-Function-Response-Mode": "streaming",
                "Content-Type": _STREAMED_CONTENT_TYPE,
                "Transfer-Encoding": "chunked",
                "Trailer": f"{_ERROR_TYPE}, {_ERROR_BODY}",
                **_echo(invocation),
            },
        )
        return ResponseStream(reader, writer, head, invocation.request_id, gone)

    async def report_error(self, invocation: Invocation, error: FunctionError) -> None:
        """Say that an invocation failed. Only before its response has begun."""
        document = error.as_json(invocation.request_id)
        await self._post(
            f"/invocation/{invocation.request_id}/error", document, error.type, _echo(invocation)
        )

    async def report_init_error(self, error: FunctionError) -> None:
        """Say that the function can't start. The process then ends."""
        await self._post("/init/error", error.as_json(), error.type)

    async def restore_next(self) -> None:
        """Let the snapshot be taken; return in a process that was restored from it."""
        await self._get("/restore/next")

    async def report_restore_error(self, error: FunctionError) -> None:
        """Say that the function can't go on from its snapshot. The process then ends."""
        await self._post("/restore/error", error.as_json(), error.type)

    async def _get(self, path: str) -> _Answer:
        async with self._connection() as (reader, writer):
            head = f"GET {_ROOT}{path} HTTP/1.1\r\nHost: {self._address}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode())
            answer = await _read_answer(reader)
        if answer.status != _OK:
            raise RuntimeApiError(f"GET {path}: HTTP {answer.status}: {_excerpt(answer.body)}")
        return answer

    async def _post(
        self, path: str, document: bytes, error_type: str, headers: Mapping[str, str] | None = None
    ) -> None:
        async with self._connection() as (reader, writer):
            head = self._head(
                path,
                {
                    "Content-Type": _ERROR_CONTENT_TYPE,
                    "Content-Length": str(len(document)),
                    _ERROR_TYPE: _token(error_type),
                    **(headers or {}),
                },
            )
            writer.write(head + document)
            await writer.drain()
            answer = await _read_answer(reader)
        if answer.status != _ACCEPTED:
            raise RuntimeApiError(f"POST {path}: HTTP {answer.status}: {_excerpt(answer.body)}")

    def _head(self, path: str, headers: Mapping[str, str]) -> bytes:
        lines = [f"POST {_ROOT}{path} HTTP/1.1", f"Host: {self._address}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._host, self._port, limit=_LINE_LIMIT)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await self._connect()
        try:
            yield reader, writer
        finally:
            await _close(writer)


class ResponseStream:
    """A streamed response: chunks that go out as they are written, then its end.

    While it is open somebody reads, so that the other side's end, by a close, a reset or an early answer, is
    seen at once: `gone` is then set, and every write raises ResponseGoneError.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        head: bytes,
        request_id: str,
        gone: asyncio.Event,
    ) -> None:
        self.gone = gone
        self._writer = writer
        self._head = head
        self._request_id = request_id
        self._answer = asyncio.create_task(_read_answer(reader), name="runtime-api-answer")
        self._answer.add_done_callback(lambda _: self.gone.set())

    async def write(self, *chunks: bytes) -> None:
        """Send chunks at once, and wait while the other side takes none. Empty ones are left out."""
        if self.gone.is_set():
            raise ResponseGoneError(self.reason)
        parts = [self._head] if self._head else []
        self._head = b""
        for chunk in chunks:
            # An empty chunk is the end of the body.
            if chunk:
                parts += (b"%x\r\n" % len(chunk), chunk, b"\r\n")
        try:
            self._writer.writelines(parts)
            await self._writer.drain()
        except OSError as error:
            self.gone.set()
            raise ResponseGoneError(str(error)) from error

    async def finish(self, error: FunctionError | None = None) -> None:
        """End the response, with the error in its trailers where it ends too early, and await the answer.

        Raises ResponseGoneError, and RuntimeApiError where the response is not accepted.
        """
        end = b"0\r\n"
        if error is not None:
            document = base64.b64encode(error.as_json(self._request_id)).decode()
            end += f"{_ERROR_TYPE}: {_token(error.type)}\r\n{_ERROR_BODY}: {document}\r\n".encode()
        if self.gone.is_set():
            raise ResponseGoneError(self.reason)
        try:
            self._writer.write(self._head + end + b"\r\n")
            await self._writer.drain()
            answer = await self._answer
        except (OSError, RuntimeApiError) as broken:
            raise ResponseGoneError(str(broken)) from broken
        if answer.status != _ACCEPTED:
            raise RuntimeApiError(f"the response was refused: HTTP {answer.status}: {_excerpt(answer.body)}")

    async def aclose(self) -> None:
        """Close the connection. A response that was not finished is thereby broken off."""
        self._answer.cancel()
        await asyncio.wait([self._answer])
        if not self._answer.cancelled():
            self._answer.exception()
        self._writer.transport.abort()
        await _close(self._writer)

    @property
    def reason(self) -> str:
        """Why the other side is gone."""
        if not self._answer.done() or self._answer.cancelled():
            return "the connection broke"
        error = self._answer.exception()
        if error is not None:
            return f"the connection was closed: {error}"
        answer = self._answer.result()
        return f"answered before the end: HTTP {answer.status}: {_excerpt(answer.body)}"


async def _read_answer(reader: asyncio.StreamReader) -> _Answer:
    """Read one HTTP/1.1 response. Raises RuntimeApiError where it breaks off or is none."""
    try:
        status = int((await reader.readuntil(b"\r\n")).split(maxsplit=2)[1])
        headers: dict[str, str] = {}
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = await _read_chunks(reader)
        elif "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        else:
            body = await reader.read()
    except (asyncio.IncompleteReadError, OSError) as error:
        raise RuntimeApiError("the Runtime API closed the connection") from error
    except (ValueError, IndexError, asyncio.LimitOverrunError) as error:
        raise RuntimeApiError("the Runtime API sent no HTTP") from error
    return _Answer(status, headers, body)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass
    return b"".join(parts)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        await writer.wait_closed()
    except OSError:
        return


def _echo(invocation: Invocation) -> dict[str, str]:
    return {} if invocation.invocation_id is None else {_INVOCATION_ID: invocation.invocation_id}


def _token(text: str) -> str:
    """Return what may stand in a header."""
    return "".join(char for char in text if char.isascii() and char.isprintable())[:200] or "Error"


def _excerpt(body: bytes) -> str:
    return redact(body[:500].decode("utf-8", "replace"))
