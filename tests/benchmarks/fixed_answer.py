"""The request that everybody is sent, the answer that the upstream gives, and the check that it came."""

from __future__ import annotations

import json
from typing import Any

PLAIN_MODEL = "bench-plain"
STREAM_MODEL = "bench-stream"

_CREATED = 1_790_000_000
_TEXT = (
    "A gateway stands between an application and the models that it calls. It knows who is calling, what "
    "they may spend and what each model costs, and it keeps a record of every call. Before a request goes "
    "out, the most that it can cost is set aside; when the answer is there, what it did cost is taken and "
    "the rest is given back. So a balance can never be overdrawn, however many calls run at the same time."
)
_WORDS = [word + " " for word in _TEXT.split(" ")]
TEXT = "".join(_WORDS)
USAGE = {"prompt_tokens": 66, "completion_tokens": len(_WORDS), "total_tokens": 66 + len(_WORDS)}


class WrongAnswerError(RuntimeError):
    """What came back is not what the upstream said."""


def request_body(*, stream: bool) -> bytes:
    """Return the request, byte for byte the same for everybody."""
    body: dict[str, Any] = {
        "model": STREAM_MODEL if stream else PLAIN_MODEL,
        "messages": [
            {"role": "system", "content": "You explain software to engineers. Be short and exact."},
            {
                "role": "user",
                "content": "What does a gateway for language models do, and how does it keep an account from "
                "being overdrawn when many calls run at once? Answer in one paragraph.",
            },
        ],
        "temperature": 0.2,
        "max_tokens": 256,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(body).encode()


def completion() -> bytes:
    """Return the upstream's whole answer."""
    message = {"role": "assistant", "content": TEXT, "refusal": None}
    return json.dumps(
        {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": _CREATED,
            "model": PLAIN_MODEL,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": USAGE,
            "system_fingerprint": "fp_bench",
        }
    ).encode()


def event_stream() -> bytes:
    """Return the upstream's streamed answer: a chunk a word, the usage, [DONE]."""
    deltas: list[tuple[dict[str, str], str | None]] = [
        ({"role": "assistant", "content": ""}, None),
        *(({"content": word}, None) for word in _WORDS),
        ({}, "stop"),
    ]
    chunks = [
        _chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}], None)
        for delta, reason in deltas
    ]
    chunks.append(_chunk([], USAGE))
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks).encode() + b"data: [DONE]\n\n"


def _chunk(choices: list[dict[str, Any]], usage: dict[str, int] | None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-bench",
        "object": "chat.completion.chunk",
        "created": _CREATED,
        "model": STREAM_MODEL,
        "choices": choices,
        "usage": usage,
        "system_fingerprint": "fp_bench",
    }


def check_completion(content: bytes) -> None:
    """Raise WrongAnswerError unless this is the upstream's whole answer."""
    try:
        told = json.loads(content)
        text, usage = told["choices"][0]["message"]["content"], told["usage"]
    except (ValueError, LookupError, TypeError) as error:
        raise WrongAnswerError(f"no chat completion: {content[:300]!r}") from error
    if text != TEXT or any(usage.get(name) != count for name, count in USAGE.items()):
        raise WrongAnswerError(f"another answer than the upstream's: {content[:300]!r}")


def check_event_stream(content: bytes) -> None:
    """Raise WrongAnswerError unless this is the upstream's streamed answer, whole."""
    events = [
        line.removeprefix(b"data:").strip() for line in content.splitlines() if line.startswith(b"data:")
    ]
    try:
        chunks = [json.loads(event) for event in events if event != b"[DONE]"]
        text = "".join(
            choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise WrongAnswerError(f"no stream of chunks: {content[:300]!r}") from error
    if text != TEXT or not events or events[-1] != b"[DONE]":
        raise WrongAnswerError(f"another stream than the upstream's: {content[-300:]!r}")
