"""What a model's name asks the simulator to do.

A name is one or more parts joined by `+`; a part is a behaviour with an optional number: `echo`, `drip-50ms`,
`cut-3`, `reasoning+no-usage`. The request header `x-sim-behaviour` takes the same and wins over the name.

| part | what | number |
|---|---|---|
| `echo` | says the prompt back | |
| `long` | a long text | its tokens, 1000 |
| `slow` | waits before the first byte | how long, 3s |
| `drip` | waits before each chunk of a stream | how long, 50ms |
| `hang` | never answers | stops answering after so many chunks of a stream |
| `cut` | drops the connection in the middle | after so many chunks of a stream, 3 |
| `cut-clean` | ends a stream with no finish_reason and no end mark | after so many chunks, 3 |
| `no-usage` | tells no usage | |
| `usage-each` | tells the usage so far on every chunk of a stream, as vLLM's continuous statistics | |
| `usage-last` | tells usage with the finish_reason, whether asked or not, as some compatible servers | |
| `unbounded` | ignores the bound on its output | |
| `malformed` | sends broken JSON | |
| `error-in-stream` | an error inside a 200: after so many chunks of a stream, or as the body | 2 |
| `reasoning` | thinks first | reasoning tokens, 24 |
| `cached` | found a part of the prompt in its cache | cached tokens, half of the prompt |
| `cache-write` | put a part of the prompt into its cache | tokens written, half of the prompt |
| `tools-parallel` | calls every tool at once | |
| `inventory` | answers with a JSON list of all that it was given, in order | |
| `image` | answers with an image, where the wire's chat can | |
| `redacted` | thinks, and hands out what it thought only encrypted, where the wire does so | |
| `filtered` | is stopped by its provider's filter after half of the answer | |
| `blocked` | has its prompt refused by the provider's filter | |
| `too-long` | refuses the prompt as longer than the context | |
| `status` | refuses with that HTTP status | the status, 500 |
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

_PART = re.compile(r"(?P<name>[a-z][a-z-]*?)(?:-(?P<number>\d{1,9})(?P<unit>ms|s)?)?")
_MILLISECONDS = 0.001
_REFUSALS = range(300, 600)


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How one call is answered. Delays are in seconds; None is never, or not."""

    first_byte_delay: float = 0.0
    chunk_delay: float = 0.0
    hang_after: int | None = None
    cut_after: int | None = None
    clean_end_after: int | None = None
    error_after: int | None = None
    status: int | None = None
    long_tokens: int | None = None
    reasoning_tokens: int = 0
    has_cache: bool = False
    cached_tokens: int | None = None
    writes_cache: bool = False
    cache_write_tokens: int | None = None
    tells_usage: bool = True
    usage_on_each_chunk: bool = False
    usage_on_last_choice: bool = False
    keeps_bound: bool = True
    malformed: bool = False
    calls_every_tool: bool = False
    takes_inventory: bool = False
    makes_image: bool = False
    redacts_thoughts: bool = False
    is_filtered: bool = False
    is_blocked: bool = False
    is_too_long: bool = False

    def cached_of(self, prompt_tokens: int) -> int:
        """How many of a prompt's tokens were found in the cache."""
        asked = prompt_tokens // 2 if self.cached_tokens is None else self.cached_tokens
        return min(asked, prompt_tokens) if self.has_cache else 0

    def cache_written_of(self, prompt_tokens: int) -> int:
        """How many of a prompt's tokens were put into the cache; never those that were found there."""
        left = prompt_tokens - self.cached_of(prompt_tokens)
        asked = left // 2 if self.cache_write_tokens is None else self.cache_write_tokens
        return min(asked, left) if self.writes_cache else 0


NAMES = (
    "echo",
    "long",
    "slow",
    "drip",
    "hang",
    "cut",
    "cut-clean",
    "no-usage",
    "usage-each",
    "usage-last",
    "unbounded",
    "malformed",
    "error-in-stream",
    "reasoning",
    "cached",
    "cache-write",
    "tools-parallel",
    "inventory",
    "image",
    "redacted",
    "filtered",
    "blocked",
    "too-long",
    "status-429",
    "status-500",
)


def parse_behaviour(name: str) -> Behaviour | None:
    """Return what `name` asks for, or None when it names no model of the simulator."""
    behaviour: Behaviour | None = Behaviour()
    for part in name.split("+"):
        behaviour = None if behaviour is None else _with_part(behaviour, part)
    return behaviour


def _with_part(behaviour: Behaviour, part: str) -> Behaviour | None:  # noqa: C901, PLR0911, PLR0912 - a table
    match = _PART.fullmatch(part)
    if match is None:
        return None
    number = int(match["number"]) if match["number"] else None
    seconds = None if number is None else number * (1.0 if match["unit"] == "s" else _MILLISECONDS)
    if match["unit"] and match["name"] not in {"slow", "drip"}:
        return None
    match match["name"], number:
        case "echo", None:
            return behaviour
        case "long", _:
            return replace(behaviour, long_tokens=1000 if number is None else number)
        case "slow", _:
            return replace(behaviour, first_byte_delay=3.0 if seconds is None else seconds)
        case "drip", _:
            return replace(behaviour, chunk_delay=0.05 if seconds is None else seconds)
        case "hang", _:
            return replace(behaviour, hang_after=number or 0)
        case "cut", _:
            return replace(behaviour, cut_after=3 if number is None else number)
        case "cut-clean", _:
            return replace(behaviour, clean_end_after=3 if number is None else number)
        case "no-usage", None:
            return replace(behaviour, tells_usage=False)
        case "usage-each", None:
            return replace(behaviour, usage_on_each_chunk=True)
        case "usage-last", None:
            return replace(behaviour, usage_on_last_choice=True)
        case "unbounded", None:
            return replace(behaviour, keeps_bound=False)
        case "malformed", None:
            return replace(behaviour, malformed=True)
        case "error-in-stream", _:
            return replace(behaviour, error_after=2 if number is None else number)
        case "reasoning", _:
            return replace(behaviour, reasoning_tokens=24 if number is None else number)
        case "cached", _:
            return replace(behaviour, has_cache=True, cached_tokens=number)
        case "cache-write", _:
            return replace(behaviour, writes_cache=True, cache_write_tokens=number)
        case "tools-parallel", None:
            return replace(behaviour, calls_every_tool=True)
        case "inventory", None:
            return replace(behaviour, takes_inventory=True)
        case "image", None:
            return replace(behaviour, makes_image=True)
        case "redacted", None:
            return replace(
                behaviour, redacts_thoughts=True, reasoning_tokens=behaviour.reasoning_tokens or 24
            )
        case "filtered", None:
            return replace(behaviour, is_filtered=True)
        case "blocked", None:
            return replace(behaviour, is_blocked=True)
        case "too-long", None:
            return replace(behaviour, is_too_long=True)
        case "status", _ if number is None or number in _REFUSALS:
            return replace(behaviour, status=500 if number is None else number)
        case _:
            return None
