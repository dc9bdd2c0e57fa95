"""multipart/form-data (RFC 7578), for the few routes that take files.

The whole body is in memory already, and bounded (`http.read_body`): so it is split, not streamed, and
nothing is written to disk. The parts' contents are views of the body, not copies of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from gateway.errors import BadRequest, Unprocessable

MAX_PARTS = 64
MAX_HEADER_BYTES = 4096
"""Of one part."""

_MAX_NAME_CHARS = 100
_BOUNDARY = re.compile(r'boundary=(?:"([^"\r\n]{1,70})"|([^\s";,]{1,70}))', re.IGNORECASE)
_PARAMETER = re.compile(r';\s*(name|filename)=(?:"((?:[^"\\]|\\.)*)"|([^\s";]+))', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Part:
    """One field of a form."""

    name: str
    content: memoryview = field(repr=False)
    is_file: bool = False
    """Whether it came with a file name. What that was is not kept: nobody is to trust it."""

    def text(self) -> str:
        """Return a field's value. Raises Unprocessable (422) where it is a file, or no UTF-8."""
        if not self.is_file:
            try:
                return bytes(self.content).decode()
            except UnicodeDecodeError:
                pass
        raise Unprocessable(f"{self.name}: must be text.", param=self.name)


def is_form(content_type: str) -> bool:
    """Return whether a Content-Type is multipart/form-data."""
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


def parse_form(body: bytes, content_type: str) -> list[Part]:
    """Return the fields of a form in their order. Raises BadRequest (400) where it is none."""
    match = _BOUNDARY.search(content_type)
    if match is None:
        raise BadRequest("The Content-Type multipart/form-data names no boundary.", code="invalid_form")
    delimiter = b"--" + (match[1] or match[2]).encode("latin-1", "replace")
    # The first delimiter may stand at the very beginning; every other follows a line break, which is its own.
    start = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter) + 2
    if start == 1:
        raise _malformed("the boundary does not occur")
    parts: list[Part] = []
    view = memoryview(body)
    while True:
        start += len(delimiter)
        if body.startswith(b"--", start):
            return parts
        if not body.startswith(b"\r\n", start):
            raise _malformed("a boundary is not followed by the end of its line")
        if len(parts) == MAX_PARTS:
            raise BadRequest(f"The form has more than {MAX_PARTS} fields.", code="invalid_form")
        end = body.find(b"\r\n" + delimiter, start)
        if end < 0:
            raise _malformed("it does not end with its boundary")
        # The blank line may be the very line break that ends the delimiter: a part without headers.
        head_end = body.find(b"\r\n\r\n", start, min(end + 2, start + MAX_HEADER_BYTES))
        if head_end < 0:
            raise _malformed("the headers of a field do not end")
        head = body[start:head_end].decode("utf-8", "replace")
        parts.append(_part(head, view[head_end + 4 : end]))
        start = end + 2


def _part(head: str, content: memoryview) -> Part:
    disposition = next(
        (
            value.strip()
            for key, _, value in (line.partition(":") for line in head.split("\r\n"))
            if key.strip().lower() == "content-disposition"
        ),
        "",
    )
    if disposition.partition(";")[0].strip().lower() != "form-data":
        raise _malformed("a part is no form field")
    named = {
        match[1].lower(): match[2] if match[2] is not None else match[3]
        for match in _PARAMETER.finditer(disposition)
    }
    name = named.get("name")
    if not name or len(name) > _MAX_NAME_CHARS or not name.isprintable():
        raise _malformed("a field has no name")
    return Part(name, content, is_file="filename" in named)


def _malformed(what: str) -> BadRequest:
    return BadRequest(f"The body is not a valid form: {what}.", code="invalid_form")
