"""The simulator's answers: deterministic texts, tool calls and JSON, cut at the token, whatever the wire."""

from __future__ import annotations

import functools
import json
import os
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


def answer(question: Question, behaviour: Behaviour) -> tuple[Choice, ...]:
    """Answer every choice of a question."""
    return tuple(_choice(question, behaviour, index) for index in range(question.choices))


def _choice(question: Question, behaviour: Behaviour, index: int) -> Choice:
    bound = question.bound if behaviour.keeps_bound else None
    thought = _repeated(_THOUGHT, behaviour.reasoning_tokens)[:bound]
    left = None if bound is None else bound - len(thought)
    if question.tools:
        return _call_tools(question, behaviour, thought, left)
    tokens = _content(question, behaviour, index)
    shown = tokens[:left]
    return Choice(
        reasoning=tuple(_pieces(thought)),
        content=tuple(_pieces(shown)),
        tool_calls=(),
        output_tokens=len(thought) + len(shown),
        reasoning_tokens=len(thought),
        is_cut=len(shown) < len(tokens) or len(thought) < behaviour.reasoning_tokens,
    )


def _content(question: Question, behaviour: Behaviour, index: int) -> list[int]:
    if behaviour.long_tokens is not None:
        return _repeated(_FILLER, behaviour.long_tokens)
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
