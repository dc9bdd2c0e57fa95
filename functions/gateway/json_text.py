"""JSON text in and out, stricter than the standard library where a stranger wrote it.

`parse_request` reads a client's body: UTF-8 only, an upper bound on nesting, no duplicate names, no NaN or
infinity, no NUL and no lone surrogate in any string (PostgreSQL's text and UTF-8 can't hold them).
`parse_provider` reads what a provider sent, which has been paid for: it refuses only what is not JSON.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json

from gateway.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DEPTH = 96
"""Levels of nesting in a request. The deepest honest ones are JSON schemas of tools, well below 40."""

_MAX_EXPONENT = 64

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
# A number that no float holds has an exponent of three digits or 309 digits before its point.
_MAY_BE_INFINITE = re.compile(r"[0-9](?:[eE]\+?[0-9]{3}|[0-9]{299})")
_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_request(raw: bytes, *, exact: bool = False, storable: bool = True) -> Any:
    """Return the value that a client's body holds.

    With `exact`, numbers with a fraction or an exponent are Decimal: 0.1 is then what the client wrote, which
    no float is. For bodies that hold money. Where it need not be `storable`, NUL and surrogates pass: for
    JSON inside a body, such as a tool's arguments, that is passed on and not kept.

    Raises BadRequest (400), naming the field by its dotted path where there is one.
    """
    if not raw.strip():
        raise BadRequest("The request body is empty; a JSON object is expected.", code="invalid_json")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(
            f"The request body is not UTF-8 (byte {error.start}).", code="invalid_json"
        ) from None
    try:
        value = (_EXACT_DECODER if exact else _REQUEST_DECODER).decode(text)
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        # The decoder's message names the kind of fault, never the text around it.
        raise BadRequest(
            f"The request body is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno}).",
            code="invalid_json",
        ) from None
    except ValueError:
        # The standard library refuses integers of more than 4,300 digits (a quadratic conversion).
        raise BadRequest("The request body holds a number that is too long.", code="invalid_json") from None
    # Neither walk is needed for nearly every body: a count of brackets bounds the depth, and NUL or a
    # surrogate can only come from an escape, as the decoder refuses the first raw and UTF-8 the second.
    unstorable = storable and ("\\u0000" in text or _SURROGATE_ESCAPE.search(text) is not None)
    if unstorable or text.count("[") + text.count("{") > MAX_DEPTH:
        _refuse_unfit(value, storable=storable)
    return value


def parse_provider(raw: bytes | str) -> Any:
    """Return the value in a provider's JSON; NaN and infinities become null. Raises ValueError."""
    text = raw if isinstance(raw, str) else raw.decode("utf-8", "replace")
    if _MAY_BE_INFINITE.search(text) is None:
        # A third of what the standard library takes, which has what this refuses: NaN, and half a surrogate.
        with contextlib.suppress(ValueError, TypeError):
            return from_json(text, allow_inf_nan=False, cache_strings="keys")
    try:
        return _PROVIDER_DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def dump(value: Any) -> bytes:
    """Return `value` as compact UTF-8 JSON. Raises ValueError on NaN and infinity.

    Text that UTF-8 can't carry (a lone surrogate in a provider's answer) goes out as an escape.
    """
    try:
        # A tenth of what the standard library takes.
        told = to_json(value)
    except ValueError:
        told = b""
    # It lets NaN and infinity pass, under these names; where they stand in a text there is no harm.
    if told and b"NaN" not in told and b"Infinity" not in told:
        return told
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def dotted(path: tuple[str | int, ...]) -> str:
    """Return a path into a JSON value as OpenAI writes it: `messages.0.content`."""
    return ".".join(str(part) for part in path)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        name = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadRequest(
            f"The request body names {name[:64]!r} twice in one object.",
            code="invalid_json",
            param=_shown(name),
        )
    return value


def _refuse_constant(name: str) -> Any:
    raise BadRequest(f"The request body holds {name}, which is not JSON.", code="invalid_json")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise BadRequest("The request body holds a number that is too large.", code="invalid_json")
    return number


def _decimal(text: str) -> Decimal:
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = None
    # A bare exponent costs nothing to send, and 10**999999 a megabyte to write out.
    if number is None or abs(number.adjusted()) > _MAX_EXPONENT:
        raise BadRequest("The request body holds a number that is too large.", code="invalid_json")
    return number


def _finite_or_none(text: str) -> float | None:
    number = float(text)
    return None if math.isinf(number) else number


def _null(_name: str) -> None:
    return None


def _refuse_unfit(value: Any, *, storable: bool) -> None:
    # Depth first with a stack of iterators: the depth is the length of the stack, and no recursion.
    path: list[str | int] = []
    stack: list[Iterator[tuple[str | int, Any]]] = [iter([("", value)])]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
            if path:
                path.pop()
            continue
        key, item = entry
        if isinstance(key, str) and storable:
            _refuse_text(key, path, "name")
        if isinstance(item, str) and storable:
            _refuse_text(item, [*path, key] if len(stack) > 1 else [], "text")
        elif isinstance(item, dict | list):
            if len(stack) > MAX_DEPTH:
                raise _too_deep()
            path.append(key)
            stack.append(iter(item.items()) if isinstance(item, dict) else iter(enumerate(item)))


def _refuse_text(text: str, path: list[str | int], what: str) -> None:
    if "\0" in text:
        fault = "a NUL character (\\u0000)"
    elif not text.isascii() and _SURROGATE.search(text):
        fault = "half a surrogate pair (\\ud800 to \\udfff)"
    else:
        return
    # The first element of a path is the root's empty name.
    where = dotted(tuple(path[1:])) or None
    raise BadRequest(
        f"A {what} in the request body holds {fault}.",
        code="invalid_json",
        param=_shown(where) if where else None,
    )


def _shown(name: str) -> str:
    return _SURROGATE.sub("�", name.replace("\0", "�"))[:128]


def _too_deep() -> BadRequest:
    return BadRequest(f"The request body is nested deeper than {MAX_DEPTH} levels.", code="invalid_json")


_REQUEST_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite
)
_EXACT_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_decimal
)
_PROVIDER_DECODER = json.JSONDecoder(parse_constant=_null, parse_float=_finite_or_none)
