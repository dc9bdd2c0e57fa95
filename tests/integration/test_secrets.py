"""No key and no content in any log line, no key in any response, whatever goes wrong."""

from __future__ import annotations

import base64
import io
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from gateway import auth, completions
from gateway.database.rpc import Database as Functions
from tests.fixtures.gateway import MASTER_KEYS, RunningGateway, serve
from tests.fixtures.wire import CHAT, RawClient, RawProvider, settled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx

    from infra.local.postgrest import PostgRest
    from tests.fixtures.database import Database
    from tests.fixtures.gateway import Customer
    from tests.fixtures.simulator import Simulator

PROMPT = "Mrs Dalloway said she would buy the flowers herself"

STATUSES = (300, 302, 400, 401, 402, 403, 404, 405, 408, 409, 413, 422, 429, 500, 502, 503, 504, 529)
BEHAVIOURS = (
    "echo",
    "long-30",
    "no-usage",
    "cut",
    "cut-0",
    "cut-clean",
    "malformed",
    "error-in-stream",
    "error-in-stream-0",
    "reasoning",
    "unbounded+long-3000",
    *(f"status-{status}" for status in STATUSES),
)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Every line of the gateway's own logger, at its most talkative, in the form in which it is written."""
    written = io.StringIO()
    logger = logging.getLogger("sluice")
    level = logger.level
    for handler in logger.handlers:
        monkeypatch.setattr(handler, "stream", written)
    logger.setLevel("DEBUG")
    yield written
    logger.setLevel(level)


@pytest.fixture
def gateway(
    database: Database, postgrest: PostgRest, simulator: Simulator, tmp_path: Path
) -> Iterator[RunningGateway]:
    with serve(
        database, postgrest, simulator, tmp_path / "spool", request_timeout_seconds=5, log_level="DEBUG"
    ) as served:
        yield served


def body(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": PROMPT}], **fields}


def quoting(status: str, content: bytes) -> RawProvider:
    return RawProvider.of(content, status=status)


def provoke(gateway: RunningGateway, customer: Customer) -> Iterator[httpx.Response]:
    """Every kind of outcome that a call can have, but those that need the database to be away."""
    http = gateway.http(customer)
    echo = gateway.model("echo")
    for stream in (False, True):
        for behaviour in BEHAVIOURS:
            yield http.post(CHAT, json=body(gateway.model(behaviour), stream=stream, max_tokens=100))
        # A provider that repeats what it was sent, key and all, as an error, as nonsense and as a page.
        quoted = json.dumps({"error": {"message": f"{PROMPT} {gateway.simulator.key}", "code": PROMPT}})
        for status in ("400 Bad Request", "422 Not So", "429 Too Many Requests", "500 Oh No", "200 OK"):
            for content in (quoted, f"<p>{PROMPT} {gateway.simulator.key}", json.dumps([PROMPT])):
                with quoting(status, content.encode()) as provider:
                    model = gateway.model("echo", base_url=provider.base_url)
                    yield http.post(CHAT, json=body(model, stream=stream))
        unreachable = gateway.model("echo", base_url="http://127.0.0.1:9/v1")
        yield http.post(CHAT, json=body(unreachable, stream=stream))
        for fields in ({"max_tokens": "x"}, {"temperature": 9}, {"messages": [{"role": PROMPT}]}, {"n": 0}):
            yield http.post(CHAT, json=body("x/y", stream=stream) | fields)
        yield http.post(CHAT, json=body(f"no/{PROMPT}", stream=stream))
        yield http.post(CHAT, json=body("x/y", stream=stream), headers={"authorization": customer.key})
        yield http.post(CHAT, json=body("x/y", stream=stream), headers={"x-api-key": auth.new_key()})
        poor = gateway.customer(None)
        yield gateway.http(poor).post(CHAT, json=body(gateway.model("echo"), stream=stream))
        limited = gateway.customer("1", requests_per_minute=1)
        for _ in range(2):
            yield gateway.http(limited).post(CHAT, json=body(echo, stream=stream))
        for _ in range(2):
            yield http.post(
                CHAT,
                json=body(echo, stream=stream),
                headers={"idempotency-key": f"once {stream}"},
            )
    yield http.post(CHAT, content=json.dumps(body("x/y"))[:-3].encode())
    yield http.post(CHAT, content=b"\xff" + PROMPT.encode())
    yield http.post("/generate", json={"text": PROMPT, "model_id": gateway.model("status-500")})
    asked = {"providerName": "openai-compatible", "model_name": gateway.model("cut"), "message": PROMPT}
    yield http.post("/api/layers/chat", json=asked)
    yield http.get(f"/v1/models/{customer.key}")
    yield http.get("/v1/models")
    yield http.post(CHAT, json=body(customer.key))
    yield http.get(f"/nothing?key={customer.key}")


def test_no_secret_is_written_or_told_and_no_content_is_written(
    gateway: RunningGateway,
    postgrest: PostgRest,
    log: io.StringIO,
    tmp_path: Path,
    *,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    customer = gateway.customer("50")
    responses = list(provoke(gateway, customer))
    assert {response.status_code for response in responses} >= {
        200,
        400,
        401,
        402,
        404,
        409,
        422,
        429,
        502,
        503,
    }

    # A client that leaves in mid-stream.
    leaving = gateway.customer("1")
    client = RawClient(gateway.url).post(
        CHAT, body(gateway.model("long-50+hang-9"), stream=True), key=leaving.key
    )
    client.read_until(b"data: ", 9)
    client.leave()
    settled(gateway, leaving)
    # Faults of our own: in the use case, and in the database's client.
    with monkeypatch.context() as patched:

        def fail(*_: object) -> None:
            raise RuntimeError(f"unforeseen, at {customer.key} and {gateway.simulator.key}")

        patched.setattr(completions, "_forward", fail)
        patched.setattr(completions, "_whole_answer", fail)
        responses += [
            gateway.http(customer).post(CHAT, json=body(gateway.model("echo"), stream=stream))
            for stream in (False, True)
        ]
        assert [response.status_code for response in responses[-2:]] == [500, 500]
    with monkeypatch.context() as patched:
        patched.setattr(Functions, "settle_request", fail)
        responses.append(gateway.http(customer).post(CHAT, json=body(gateway.model("echo"))))
    # The database goes away in the middle of a call, and before one.
    client = RawClient(gateway.url).post(CHAT, body(gateway.model("slow-300ms")), key=customer.key)
    calls = gateway.simulator.calls.count()
    gateway.simulator.calls.wait_for(lambda log: log.count() > calls or log.last().model == "slow-300ms")
    postgrest.stop()
    _, _, pending = client.response()
    client.leave()
    assert b"pending" in pending
    responses.append(gateway.http(customer).post(CHAT, json=body("x/y")))
    assert responses[-1].status_code == 503

    secrets = {
        "client key": customer.key,
        "another's key": leaving.key,
        "provider key": gateway.simulator.key,
        "master key": base64.b64encode(MASTER_KEYS["one"]).decode(),
        "raw master key": MASTER_KEYS["one"].decode(),
        "supabase key": postgrest.token("service_role"),
        "supabase key's signature": gateway.settings.supabase_key.get_secret_value().rsplit(".", 1)[1],
    }
    # Of the gateway's own lines only the form counts in which they are written; of the others' all.
    others = [caplog.handler.format(record) for record in caplog.records if record.name != "sluice"]
    written = log.getvalue() + "\n".join(others)
    assert written.count("\n") > len(BEHAVIOURS)
    kept = "".join(path.read_text() for path in (tmp_path / "spool").iterdir())
    assert kept
    told = pending.decode() + "".join(f"{response.headers}{response.text}" for response in responses)
    for name, secret in secrets.items():
        for where, text in (("log", written), ("spool", kept), ("responses", told)):
            assert secret not in text, f"{name} in the {where}: …{around(text, secret)}…"
    for word in (*PROMPT.split(), "quick brown fox", "think about this"):
        if len(word) > 5:
            for where, text in (("log", written), ("spool", kept)):
                assert word not in text, f"content in the {where}: …{around(text, word)}…"


def around(text: str, found: str) -> str:
    start = text.index(found)
    return text[max(start - 300, 0) : start + 100]
