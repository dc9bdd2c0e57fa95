from __future__ import annotations

import asyncio
import io
import json
from typing import Any
from uuid import uuid4

import pytest

from gateway.auth import new_key
from gateway.observability import Logger, append_log_keys, make_logger, request_log_keys


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def logger(stream: io.StringIO) -> Logger:
    # A name of its own: loggers live as long as the process.
    return make_logger(service=f"test-{uuid4()}", level="DEBUG", stream=stream)


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_json_with_the_requests_keys(logger: Logger, stream: io.StringIO) -> None:
    with request_log_keys(request_id="req_1"):
        append_log_keys(customer=7, model="sim/echo", key_prefix="sk_abc123…")
        logger.info("Admitted.", extra={"tokens": 12})
    (line,) = _lines(stream)
    assert line["message"] == "Admitted."
    assert line["level"] == "INFO"
    assert line["timestamp"].endswith("+00:00")
    expected = {
        "request_id": "req_1",
        "customer": 7,
        "model": "sim/echo",
        "key_prefix": "sk_abc123…",
        "tokens": 12,
    }
    assert {name: line[name] for name in expected} == expected


def test_keys_end_with_their_request(logger: Logger, stream: io.StringIO) -> None:
    with request_log_keys(request_id="req_1"):
        append_log_keys(customer=7)
    logger.info("Between requests.")
    append_log_keys(customer=8)
    with request_log_keys(request_id="req_2"):
        logger.info("Next.")
        append_log_keys(request_id=None)
        logger.info("Removed.")
    between, following, removed = _lines(stream)
    assert "customer" not in between
    assert "request_id" not in between
    assert following["request_id"] == "req_2"
    assert "customer" not in following
    assert "request_id" not in removed


async def test_requests_on_one_loop_do_not_mix(logger: Logger, stream: io.StringIO) -> None:
    barrier = asyncio.Barrier(20)

    async def subtask(number: int) -> None:
        await barrier.wait()
        append_log_keys(model=f"m{number}")

    async def request(number: int) -> None:
        with request_log_keys(request_id=f"req_{number}"):
            append_log_keys(customer=number)
            await asyncio.create_task(subtask(number))
            logger.info("Done.", extra={"number": number})

    await asyncio.gather(*(request(number) for number in range(20)))
    lines = _lines(stream)
    assert len(lines) == 20
    for line in lines:
        number = line["number"]
        assert (line["request_id"], line["customer"], line["model"]) == (
            f"req_{number}",
            number,
            f"m{number}",
        )


def _fail_with(secret: str) -> None:
    cause = ValueError(secret)
    cause.add_note(secret)
    raise RuntimeError(f"while using {secret}") from cause


def test_no_secret_reaches_a_line_by_any_way(logger: Logger, stream: io.StringIO) -> None:
    secret = new_key()
    with request_log_keys(request_id=secret):
        logger.info(f"key {secret}")  # noqa: G004 - one of the ways
        logger.info("key %s", secret)
        logger.info({"nested": [{"deep": secret, secret: ("x", secret.encode())}]})
        logger.info("extra", extra={"headers": {"X": f"a\n{secret}"}, "object": ValueError(secret)})
        try:
            _fail_with(secret)
        except RuntimeError:
            logger.exception("failed")
    assert secret not in stream.getvalue()
    assert secret[6:] not in stream.getvalue()
    lines = _lines(stream)
    assert len(lines) == 5
    assert "RuntimeError: while using sk_[redacted]" in lines[-1]["exception"]


def test_a_secret_without_a_shape_is_known_by_its_name(logger: Logger, stream: io.StringIO) -> None:
    logger.info("x", extra={"provider_key": 'opa"que', "nested": {"API-Key": "opaque", "monkey": "fine"}})
    (line,) = _lines(stream)
    assert line["provider_key"] == "[redacted]"
    assert line["nested"] == {"API-Key": "[redacted]", "monkey": "fine"}
