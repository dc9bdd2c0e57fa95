"""What every endpoint does with a call: read it, note it, check it, and answer as the model's name says."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from email import policy
from email.parser import BytesParser
from typing import TYPE_CHECKING, Any, Protocol

from infra.local.simulator.answers import data_bytes, data_url
from infra.local.simulator.behaviour import Behaviour, parse_behaviour
from infra.local.simulator.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from starlette.types import Receive, Scope, Send

    from infra.local.simulator.calls import CallLog


class Refusal(Exception):  # noqa: N818 - an answer, not a fault
    """An HTTP error of a provider; `body` is in its own shape."""

    def __init__(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it came. `body` is {} where it is no JSON object; `key` is where the wire has it."""

    path: str
    query: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    number: int = 0
    key: str = ""

    @property
    def url(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path


class Reply(Protocol):
    """An answered request, ready to be written plain or as a stream."""

    @property
    def usage(self) -> dict[str, Any]: ...

    def plain(self) -> Any:
        """Return the whole answer."""

    def events(self) -> Iterator[bytes]:
        """Yield the stream's events as bytes, with what goes wrong in them."""


class Wire(Protocol):
    """One endpoint of a provider, in its own format."""

    name: str
    request_id_header: str

    def key(self, asked: Asked) -> str:
        """Return the key where this wire takes it, "" where there is none."""

    def model(self, asked: Asked) -> str:
        """Return the name of the model that is asked for, "" where there is none."""

    def is_streamed(self, asked: Asked) -> bool: ...

    def authenticate(self, asked: Asked, key: str | None) -> None:
        """Raise Refusal unless the request carries `key` as this wire wants it; None takes any."""

    def reply(self, asked: Asked, behaviour: Behaviour | None) -> Reply:
        """Check and answer the request. Raises Refusal. `behaviour` None: there is no such model."""

    def refusal(self, status: int, message: str, *, code: str | None = None) -> Refusal:
        """Return an error of that status in this wire's shape."""

    def stream_error(self) -> Any:
        """Return the error that comes inside an answer whose status was 200."""


class Endpoint:
    """A wire as an ASGI app. `key` is the provider key that it demands; None takes any."""

    def __init__(self, wire: Wire, log: CallLog, key: str | None) -> None:
        self._wire = wire
        self._log = log
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = await _read(receive)
        if raw is None:
            return
        wire = self._wire
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        body = _parsed(raw, headers.get("content-type", ""))
        asked = Asked(scope["path"], scope["query_string"].decode("latin-1"), headers, body)
        model = wire.model(asked)
        call = self._log.begin(
            wire.name, model, headers, body, url=asked.url, streamed=wire.is_streamed(asked)
        )
        asked = Asked(asked.path, asked.query, headers, body, call.number, wire.key(asked))
        behaviour = parse_behaviour(headers.get("x-sim-behaviour") or model)
        transport = Transport(
            call,
            behaviour or Behaviour(),
            self._log,
            receive,
            send,
            request_id_header=wire.request_id_header,
        )
        try:
            wire.authenticate(asked, self._key)
            if behaviour is not None and behaviour.status is not None:
                raise status_refusal(wire, asked, behaviour.status)
            reply = wire.reply(asked, behaviour)
        except Refusal as refusal:
            await transport.run(transport.send_json(refusal.status, refusal.body, refusal.headers))
            return
        call.usage = reply.usage
        if call.streamed:
            await transport.run(transport.send_events(reply.events()))
        elif behaviour is not None and behaviour.error_after is not None:
            await transport.run(transport.send_json(200, wire.stream_error()))
        else:
            await transport.run(transport.send_json(200, reply.plain()))


def status_refusal(wire: Wire, asked: Asked, status: int) -> Refusal:
    """Refuse as a careless provider does: its message repeats the key, which the gateway must not pass on."""
    message = f"Simulated status {status} for the key {asked.key}."
    refusal = wire.refusal(status, message, code=f"simulated_{status}")
    if status == 429:  # noqa: PLR2004 - Too Many Requests
        refusal.headers["retry-after"] = "1"
    if status < 400:  # noqa: PLR2004 - a redirect
        refusal.headers["location"] = "/v1/models"
    return refusal


def interrupted(chunks: Iterator[bytes], behaviour: Behaviour, error: bytes) -> Iterator[bytes]:
    """Yield a stream's events, its end mark among them, until the behaviour has them go wrong."""
    for sent, event in enumerate(chunks):
        if behaviour.error_after is not None and sent >= behaviour.error_after:
            yield error
            return
        if behaviour.clean_end_after is not None and sent >= behaviour.clean_end_after:
            return
        if behaviour.malformed and sent > 0:
            yield event[: len(event) // 2] + b"\n\n"
            return
        yield event


def event(content: Any, name: str | None = None) -> bytes:
    """Return one server-sent event; `name` is its type where the wire tells it."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return (
        head + b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
    )


@dataclass(frozen=True, slots=True)
class FileGiven:
    """A file of a form."""

    media_type: str
    content: bytes

    @classmethod
    def of_url(cls, url: str) -> FileGiven:
        """Read a data URL. Raises ValueError where it is none."""
        found = data_url(url)
        if found is None:
            raise ValueError("no data URL")
        return cls(found[0], data_bytes(found[1]))

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.content).hexdigest()[:16]}"


def _parsed(raw: bytes, content_type: str) -> dict[str, Any]:
    """Return a JSON object or a form's fields; anything else is read as {}, which lacks a model."""
    if content_type.startswith("multipart/form-data"):
        return _form(raw, content_type)
    try:
        body = json.loads(raw)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _form(raw: bytes, content_type: str) -> dict[str, Any]:
    head = f"content-type: {content_type}\r\n\r\n".encode("latin-1")
    message = BytesParser(policy=policy.HTTP).parsebytes(head + raw)
    form: dict[str, Any] = {}
    for part in message.iter_parts():
        name = str(part.get_param("name", header="content-disposition"))
        content = part.get_payload(decode=True)
        held = content if isinstance(content, bytes) else b""
        is_file = part.get_filename() is not None
        value = FileGiven(part.get_content_type(), held) if is_file else held.decode("utf-8", "replace")
        form[name] = [*_listed(form[name]), value] if name in form else value
    return form


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


async def _read(receive: Receive) -> bytes | None:
    """Read the whole body; None where the client left before it was whole: nothing was asked."""
    raw = b""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        raw += message.get("body", b"")
        more = message.get("more_body", False)
    return raw
