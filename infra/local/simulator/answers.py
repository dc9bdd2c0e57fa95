"""The simulator's answers: deterministic texts, tool calls and JSON, cut at the token, whatever the wire."""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import json
import math
import os
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tiktoken

from infra.local import paths

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from infra.local.simulator.behaviour import Behaviour

_LEAD = "You said: "
_FILLER = "The quick brown fox jumps over the lazy dog. "
_THOUGHT = "Let me think about this step by step. "
_ARGUMENT_FRAGMENT = 8  # characters of a tool call's arguments in one chunk
_SCHEMA_DEPTH = 8


@functools.cache
def encoding() -> tiktoken.Encoding:
    """Load o200k_base from the files of infra.local.tokenizer, apart from the gateway's own counting."""
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(paths.TOKENIZERS))
    return tiktoken.get_encoding("o200k_base")


def count_tokens(text: str) -> int:
    """Return the tokens of `text` in o200k_base; text that looks like a special token is only text."""
    return len(encoding().encode_ordinary(text))


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call: its name and the JSON schema of its parameters."""

    name: str
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """What a request asks for, the same for every wire. `bound` is in tokens, for each choice."""

    text: str
    prompt_tokens: int
    bound: int | None = None
    choices: int = 1
    stop: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    parallel_tool_calls: bool = True
    wants_json: bool = False
    json_schema: dict[str, Any] | None = None
    given: tuple[dict[str, Any], ...] = ()
    """Every piece of the conversation in order, the same for every wire, as `given_text` has it."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool; `fragments` joined are its arguments, which are JSON unless the bound cut them."""

    name: str
    fragments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer, in the pieces in which it is streamed. `output_tokens` has the reasoning in it."""

    reasoning: tuple[str, ...]
    content: tuple[str, ...]
    tool_calls: tuple[ToolCall, ...]
    output_tokens: int
    reasoning_tokens: int
    is_cut: bool
    is_filtered: bool = False


def given_text(role: str, text: str, *, tool: str | None = None) -> dict[str, Any]:
    """Return the piece for a text; `role` is OpenAI's. `tool` is the function whose result it is."""
    return {"role": role, "text": text} if tool is None else {"role": role, "tool": tool, "text": text}


def given_media(
    role: str, kind: str, *, data: str | None = None, url: str = "", tool: str | None = None
) -> dict[str, Any]:
    """Return the piece for an image, audio, video or file: its address, or the digest of its base64 `data`.

    Raises ValueError where `data` is no base64.
    """
    piece = {"role": role, kind: url if data is None else digest(data)}
    return piece if tool is None else {**piece, "tool": tool}


def given_call(name: str, arguments: Any) -> dict[str, Any]:
    """Return the piece for a tool call that the model made earlier; arguments in JSON are read."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return {"role": "assistant", "call": name, "arguments": arguments}
    return {"role": "assistant", "call": name, "arguments": arguments}


def media_kind(media_type: str) -> str:
    """Return what a media type is an example of: image, audio, video or file."""
    kind = media_type.partition("/")[0]
    return kind if kind in {"image", "audio", "video"} else "file"


def digest(data: str) -> str:
    """Return a short name of the bytes that `data` is the base64 of. Raises ValueError where it is none."""
    return f"sha256:{hashlib.sha256(data_bytes(data)).hexdigest()[:16]}"


def data_bytes(data: str) -> bytes:
    """Return the bytes that `data` is the base64 of. Raises ValueError where it is none."""
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None


def data_url(url: str) -> tuple[str, str] | None:
    """Split `data:<type>;base64,<data>`; None for any other address."""
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        return None
    return head.removeprefix("data:").removesuffix(";base64"), data


def picture(text: str, side: int = 8) -> bytes:
    """Return a PNG of one colour, made from `text`: the same text always gives the same bytes."""
    colour = hashlib.sha256(text.encode()).digest()[:3]
    rows = b"".join(b"\0" + colour * side for _ in range(side))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )


def embedding(text: str, dimensions: int) -> list[float]:
    """Return a unit vector made from `text`: the same text always gives the same one."""
    stream = hashlib.shake_256(text.encode()).digest(4 * dimensions)
    values = [number / 2**32 - 0.5 for number in struct.unpack(f">{dimensions}I", stream)]
    length = math.sqrt(sum(value * value for value in values))
    return [round(value / length, 9) for value in values]


def signature(text: str) -> str:
    """Return the signature, in base64, that the simulator puts under what a model has thought."""
    return base64.b64encode(hashlib.sha256(b"simulator" + text.encode()).digest()).decode()


def answer(question: Question, behaviour: Behaviour) -> tuple[Choice, ...]:
    """Answer every choice of a question."""
    return tuple(_choice(question, behaviour, index) for index in range(question.choices))


def _choice(question: Question, behaviour: Behaviour, index: int) -> Choice:
    bound = question.bound if behaviour.keeps_bound else None
    thought = _repeated(_THOUGHT, behaviour.reasoning_tokens)[:bound]
    left = None if bound is None else bound - len(thought)
    if question.tools and not behaviour.takes_inventory:
        return _call_tools(question, behaviour, thought, left)
    tokens = _content(question, behaviour, index)
    shown = tokens[:left]
    if behaviour.is_filtered:
        shown = shown[: (len(shown) + 1) // 2]
    return Choice(
        reasoning=tuple(_pieces(thought)),
        content=tuple(_pieces(shown)),
        tool_calls=(),
        output_tokens=len(thought) + len(shown),
        reasoning_tokens=len(thought),
        is_cut=len(shown) < len(tokens) or len(thought) < behaviour.reasoning_tokens,
        is_filtered=behaviour.is_filtered,
    )


def _content(question: Question, behaviour: Behaviour, index: int) -> list[int]:
    if behaviour.long_tokens is not None:
        return _repeated(_FILLER, behaviour.long_tokens)
    if behaviour.takes_inventory:
        return encoding().encode_ordinary(json.dumps(question.given, ensure_ascii=False))
    if question.wants_json:
        schema = question.json_schema
        value = {"answer": question.text} if schema is None else example(schema)
        return encoding().encode_ordinary(json.dumps(value, ensure_ascii=False))
    text = _LEAD + question.text if index == 0 else f"Choice {index + 1}. {_LEAD}{question.text}"
    for stop in question.stop:
        text = text.partition(stop)[0] if stop else text
    return encoding().encode_ordinary(text)


def _call_tools(question: Question, behaviour: Behaviour, thought: list[int], left: int | None) -> Choice:
    every = behaviour.calls_every_tool and question.parallel_tool_calls
    called: list[ToolCall] = []
    used = 0
    is_cut = False
    for tool in question.tools if every else question.tools[:1]:
        name_tokens = count_tokens(tool.name)
        arguments = encoding().encode_ordinary(json.dumps(example(tool.parameters), ensure_ascii=False))
        room = None if left is None else left - used - name_tokens
        if room is not None and room < 0:
            is_cut = True
            break
        written = arguments[:room]
        is_cut = len(written) < len(arguments)
        text = encoding().decode(written)
        called.append(ToolCall(tool.name, tuple(_fragments(text))))
        used += name_tokens + len(written)
    return Choice(
        reasoning=tuple(_pieces(thought)),
        content=(),
        tool_calls=tuple(called),
        output_tokens=len(thought) + used,
        reasoning_tokens=len(thought),
        is_cut=is_cut or len(thought) < behaviour.reasoning_tokens,
    )


def _fragments(text: str) -> Iterator[str]:
    for start in range(0, len(text), _ARGUMENT_FRAGMENT):
        yield text[start : start + _ARGUMENT_FRAGMENT]


def _repeated(sentence: str, tokens: int) -> list[int]:
    """Return so many tokens of a text, not of a list: where one sentence meets the next, tokens merge."""
    times = tokens // max(len(encoding().encode_ordinary(sentence)) - 1, 1) + 1
    return encoding().encode_ordinary(sentence * times)[:tokens]


def _pieces(tokens: Sequence[int]) -> Iterator[str]:
    """Decode one token after the other; one that ends inside a character waits for the rest of it."""
    waiting = b""
    for token in tokens:
        waiting += encoding().decode_single_token_bytes(token)
        try:
            piece = waiting.decode()
        except UnicodeDecodeError:
            continue
        waiting = b""
        yield piece
    if waiting:
        yield waiting.decode(errors="replace")


def read_arguments(text: str) -> dict[str, Any]:
    """Return a tool call's arguments; none where the bound has cut them."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def example(schema: dict[str, Any]) -> Any:
    """Make a value that fits a JSON schema; the same schema always gives the same value."""
    return _example(schema, schema, 0)


def _example(schema: Any, root: dict[str, Any], depth: int) -> Any:  # noqa: C901, PLR0911, PLR0912 - one return per kind of schema
    if not isinstance(schema, dict) or depth > _SCHEMA_DEPTH:
        return None
    if isinstance(reference := schema.get("$ref"), str):
        return _example(_resolve(reference, root), root, depth + 1)
    for fixed in ("const", "default"):
        if fixed in schema:
            return schema[fixed]
    if options := schema.get("enum"):
        return options[0]
    for combined in ("anyOf", "oneOf", "allOf"):
        if parts := schema.get(combined):
            return _example(parts[0], root, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    match kind[0] if isinstance(kind, list) and kind else kind:
        case "object":
            properties = schema.get("properties") or {}
            return {name: _example(value, root, depth + 1) for name, value in properties.items()}
        case "array":
            size = max(int(schema.get("minItems", 1)), 1)
            return [_example(schema.get("items", {}), root, depth + 1)] * size
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return "example".ljust(int(schema.get("minLength", 0)), ".")[: schema.get("maxLength")]


def _resolve(reference: str, root: dict[str, Any]) -> Any:
    found: Any = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        if step:
            found = found.get(step) if isinstance(found, dict) else None
    return found
