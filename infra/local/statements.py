r"""Split a SQL file into its statements, and follow psql's `\ir` lines."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_TOKEN = re.compile(
    r"""
      (?P<comment> --[^\n]* )
    | (?P<block> /\* )
    | (?P<dollar> (?<![\w$]) \$ (?:[^\W\d]\w*)? \$ )
    | (?P<escaped> (?<!\w) [eE] ' (?: [^'\\] | '' | \\. )* ' )
    | (?P<quoted> ' (?: [^'] | '' )* ' | " (?: [^"] | "" )* " )
    | (?P<word> [^\W\d] [\w$]* )
    | (?P<end> ; )
    """,
    re.VERBOSE | re.DOTALL,
)
_BLOCK_COMMENT_EDGE = re.compile(r"/\*|\*/")
_INCLUDE = re.compile(r"\\ir\s+(\S+)\s*$")


def _end_of_block_comment(text: str, start: int) -> int:
    """Return where the comment that begins at `start` ends; PostgreSQL's nest."""
    depth = 0
    for edge in _BLOCK_COMMENT_EDGE.finditer(text, start):
        depth += 1 if edge.group() == "/*" else -1
        if depth == 0:
            return edge.end()
    return len(text)


def split_statements(text: str) -> list[str]:
    """Return the statements of `text` without their semicolons; comments stay with what follows them.

    A semicolon inside a string, a dollar-quoted body, a comment or a `begin atomic … end` body ends nothing.
    """
    statements: list[str] = []
    start = position = atomic_depth = 0
    previous_word = ""
    has_content = False
    while token := _TOKEN.search(text, position):
        kind = token.lastgroup
        between = text[position : token.start()]
        has_content = has_content or bool(between.strip()) or kind not in {"comment", "block", "end"}
        position = token.end()
        if kind == "block":
            position = _end_of_block_comment(text, token.start())
        elif kind == "dollar":
            close = text.find(token.group(), position)
            position = len(text) if close < 0 else close + len(token.group())
        elif kind == "word":
            word = token.group().lower()
            if (previous_word == "begin" and word == "atomic") or (atomic_depth and word == "case"):
                atomic_depth += 1
            elif atomic_depth and word == "end":
                atomic_depth -= 1
            previous_word = word
        elif kind == "end" and not atomic_depth:
            if has_content:
                statements.append(text[start : token.start()].strip())
            start, has_content = position, False
    rest = text[start:].strip()
    if rest and (has_content or text[position:].strip()):
        statements.append(rest)
    return statements


def included_files(script: Path) -> Iterator[tuple[Path, str]]:
    r"""Yield (path, text) in the order in which psql would run `script` and what its `\ir` lines name.

    A path in an `\ir` line is relative to the file it stands in. Text between two such lines is yielded as
    the part of its file that it is, with blank lines before it, so that an error's line number is the file's.
    """
    pending: list[str] = []
    number = 0
    for number, line in enumerate(script.read_text(encoding="utf-8").splitlines(), start=1):
        include = _INCLUDE.match(line)
        if include is None:
            if line.startswith("\\"):
                raise ValueError(f"{script}:{number}: only \\ir is understood here, not {line!r}")
            pending.append(line)
            continue
        if any(text.strip() for text in pending):
            yield script, "\n" * (number - 1 - len(pending)) + "\n".join(pending) + "\n"
        pending = []
        yield from included_files(script.parent / include.group(1))
    if any(text.strip() for text in pending):
        yield script, "\n" * (number - len(pending)) + "\n".join(pending) + "\n"
