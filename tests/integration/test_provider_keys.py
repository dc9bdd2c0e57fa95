"""No provider key gets out: a mixed load over every wire, with providers that fail and quote what they were
sent, and then a search through everything that was written, told, stored, sent as an address or traced.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import secrets
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

import pytest

from infra.local.serving import ThreadedServer
from infra.local.simulator import CallLog, create_simulator
from tests.fixtures.gateway import RunningGateway, serve
from tests.fixtures.wire import CHAT, HELLO, RawProvider

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import httpx

    from infra.local.postgrest import PostgRest
    from tests.fixtures.database import Database
    from tests.fixtures.simulator import Simulator

# Of the vendors' shapes, and of none: what looks like no key has to be found by what it is.
KEYS = {
    "openai": f"sk-proj-{secrets.token_urlsafe(40)}",
    "anthropic": f"sk-ant-api03-{secrets.token_urlsafe(40)}",
    "gemini": f"AIza{secrets.token_hex(17)}",
    "openai-compatible": f"plain{secrets.token_hex(8)}+/={secrets.token_hex(8)}?&%",
}
PATHS = {"anthropic": "/anthropic/v1", "gemini": "/gemini/v1beta"}
BEHAVIOURS = (
    "echo",
    "reasoning+tools-parallel",
    "no-usage",
    "cut-2+long",
    "cut-clean-2+long",
    "malformed",
    "error-in-stream-2+long",
    "too-long",
    "blocked",
    "filtered",
    *(f"status-{status}" for status in (302, 400, 401, 402, 403, 404, 413, 422, 429, 500, 503, 529)),
)
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
TRACE = "Root=1-581cf771-a006649127e371903a2de979;Parent=70de5b6f19ff9a0a;Sampled=1"


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Every line of the gateway's own logger, in the form in which it is written."""
    written = io.StringIO()
    logger = logging.getLogger("sluice")
    level = logger.level
    for handler in logger.handlers:
        monkeypatch.setattr(handler, "stream", written)
    yield written
    logger.setLevel(level)


@pytest.fixture
def daemon() -> Iterator[socket.socket]:
    """The socket of an X-Ray daemon, with room for what one run sends it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        yield receiver


@pytest.fixture
def gateway(
    database: Database,
    postgrest: PostgRest,
    simulator: Simulator,
    daemon: socket.socket,
    tmp_path: Path,
    *,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[RunningGateway]:
    monkeypatch.setenv("_X_AMZN_TRACE_ID", TRACE)
    host, port = daemon.getsockname()
    with serve(
        database,
        postgrest,
        simulator,
        tmp_path / "spool",
        log_level="DEBUG",
        request_timeout_seconds=20,
        xray_daemon_address=f"{host}:{port}",
    ) as served:
        yield served


def traces(daemon: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(daemon.recv(65536).decode())
        except BlockingIOError:
            return found


def forms(key: str) -> set[str]:
    """A key as it is, and in each coding in which it may stand within something longer."""
    raw = key.encode()
    found = {
        key,
        quote(key),
        quote(key, safe=""),
        quote_plus(key),
        raw.hex(),
        raw.hex().upper(),
        repr(key)[1:-1],
    }
    found |= {json.dumps(key)[1:-1], key[::-1]}
    for before in range(3):
        # Of base64 within a longer text, all but the ends is the same for each place modulo three.
        coded = base64.b64encode(b"x" * before + raw)
        inner = coded[4 if before else 0 : len(coded) // 4 * 4 - 4].decode()
        found |= {inner, inner.replace("+", "-").replace("/", "_")}
    return found


def stored(gateway: RunningGateway) -> Iterator[tuple[str, str]]:
    """Every row of every table."""
    tables = gateway.connection.execute(
        "select relname from pg_class where relnamespace = 'gateway'::regnamespace and relkind in ('r', 'p')"
    ).fetchall()
    for (table,) in tables:
        for (row,) in gateway.connection.execute(f'select to_jsonb(t)::text from gateway."{table}" as t'):
            yield f"table {table}", row


def load(gateway: RunningGateway, url: str, admin: httpx.Client) -> Iterator[httpx.Response]:
    """A mixed load: each wire, plain and streamed, well and failing, and what its operator does."""
    client = gateway.http(gateway.customer("1000"))
    made: dict[str, str] = {}
    for provider, key in KEYS.items():
        for behaviour in BEHAVIOURS:
            yield admin.post("/admin/models", json=new_model(provider, behaviour))
        service = {
            "name": provider,
            "provider": provider,
            "base_url": url + PATHS.get(provider, "/v1"),
            "provider_key": "to-be-replaced-0123456789",
            "enabled_models": [f"{provider}/{behaviour}" for behaviour in BEHAVIOURS],
        }
        response = admin.post("/admin/services", json=service)
        assert response.status_code == 201, response.text
        yield response
        made[provider] = f"/admin/services/{response.json()['id']}"
        yield admin.patch(made[provider], json={"provider_key": key})
        yield admin.post(f"{made[provider]}/test")
        for body in bodies(provider, BEHAVIOURS):
            yield client.post(CHAT, json=body)
        fallback = [f"{provider}/status-503", f"{provider}/echo"]
        yield client.post(CHAT, json={"model": fallback[0], "models": fallback, "messages": HELLO})
    for provider, key in KEYS.items():
        yield from quoted(client, admin, made[provider], provider, key)
        # An address that is refused, with a key in it.
        for wrong in (f"http://{key[:20]}@127.0.0.1/v1", f"{url}/v1?key={quote(key)}"):
            yield admin.patch(made[provider], json={"base_url": wrong})
    for path in ("services", "audit", "monitor", "models", "settings", "ledger/check"):
        yield admin.get(f"/admin/{path}")


def new_model(provider: str, behaviour: str) -> dict[str, Any]:
    offer = {"provider": provider, "upstream_model": behaviour, "prices": {"input": "1", "output": "2"}}
    return {
        "name": f"{provider}/{behaviour}",
        "context_length": 32768,
        "max_output_tokens": 4096,
        "offers": [offer],
    }


def bodies(provider: str, behaviours: Sequence[str]) -> Iterator[dict[str, Any]]:
    for behaviour in behaviours:
        tools = {"tools": [TOOL]} if "tools" in behaviour else {}
        for stream in (False, True):
            model = f"{provider}/{behaviour}"
            yield {"model": model, "messages": HELLO, "max_tokens": 500, "stream": stream, **tools}


def quoted(
    client: httpx.Client, admin: httpx.Client, service: str, provider: str, key: str
) -> Iterator[httpx.Response]:
    """A provider that answers with what it was sent: as an error of each kind, as a page, as an answer."""
    for status in ("200 OK", "400 Bad Request", "401 Unauthorized", "429 Too Many", "500 Oh No"):
        for content in (json.dumps({"error": {"message": key, "code": key, "type": key}}), key):
            with RawProvider.of(content.encode(), status=status) as quoting:
                yield admin.patch(service, json={"base_url": quoting.base_url, "provider_key": key})
                for body in bodies(provider, ["echo"]):
                    yield client.post(CHAT, json=body)
                yield admin.post(f"{service}/test")


@pytest.mark.slow
def test_no_provider_key_is_written_told_stored_traced_or_sent_as_an_address(
    gateway: RunningGateway,
    daemon: socket.socket,
    log: io.StringIO,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    *,
    postgres: Any,
    postgrest: PostgRest,
) -> None:
    caplog.set_level("DEBUG")
    admin = gateway.http()
    admin.headers["authorization"] = f"Bearer {gateway.admin_key()}"
    calls = CallLog(kept=10_000)
    with ThreadedServer(create_simulator(log=calls)) as server:
        responses = list(load(gateway, server.url, admin))
    gateway.connection.execute("select 1")
    statuses = {response.status_code for response in responses}
    assert statuses >= {200, 201, 400, 413, 422, 502, 503}, statuses
    assert {call.wire for call in calls.all()} == {"openai", "anthropic", "gemini"}
    for customer in gateway.connection.execute(
        "select distinct customer_id from gateway.requests"
    ).fetchall():
        assert settled_count(gateway, customer[0]) > 100

    sent = [("address", call.url) for call in calls.all()]
    sent += [("body", json.dumps(call.body, default=repr)) for call in calls.all()]
    others = [
        ("a library's log", caplog.handler.format(record))
        for record in caplog.records
        if record.name != "sluice"
    ]
    places: list[tuple[str, str]] = [
        *(
            ("response", f"{response.status_code} {response.headers} {response.text}")
            for response in responses
        ),
        *(("log", line) for line in log.getvalue().splitlines()),
        *others,
        *sent,
        *stored(gateway),
        *(("trace", document) for document in traces(daemon)),
        *(("spool", path.read_text()) for path in (tmp_path / "spool").glob("*")),
        ("PostgreSQL's log", postgres.log.read_text()),
        ("PostgREST's log", postgrest.log.read_text()),
    ]
    kinds = {kind.partition(" ")[0] for kind, _ in places}
    assert kinds >= {"response", "log", "address", "table", "trace", "PostgreSQL's"}
    # The search finds what is there: each key did reach its provider, in its header.
    carried = json.dumps([dict(call.headers) for call in calls.all()])
    for provider, key in KEYS.items():
        assert json.dumps(key)[1:-1] in carried, f"{provider}'s key was never sent"
        for form in forms(key):
            found = [(kind, around(text, form)) for kind, text in places if form in text]
            assert not found, (provider, found[:3])


def settled_count(gateway: RunningGateway, customer_id: int) -> int:
    row = gateway.connection.execute(
        "select count(*) from gateway.requests where customer_id = %s and state = 'settled'", [customer_id]
    ).fetchone()
    assert row is not None
    return int(row[0])


def around(text: str, found: str) -> str:
    start = text.index(found)
    return text[max(start - 200, 0) : start + 100]
