from __future__ import annotations

import contextlib
import email.parser
import email.policy
from typing import Any

import httpx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.errors import BadRequest, Unprocessable
from gateway.multipart import MAX_PARTS, is_form, parse_form

TYPE = "multipart/form-data; boundary=edge"
NAMES = st.text(alphabet="abcdefghijklmnopqrstuvwxyz_[]", min_size=1, max_size=20)


def sent(fields: dict[str, str], files: Any) -> tuple[bytes, str]:
    request = httpx.Request("POST", "http://gateway", data=fields, files=files)
    return request.read(), request.headers["content-type"]


@given(
    st.dictionaries(NAMES, st.text(), max_size=5),
    st.lists(st.tuples(NAMES, st.binary(max_size=200)), min_size=1, max_size=5),
)
def test_what_httpx_sends_arrives_whole(fields: dict[str, str], files: list[tuple[str, bytes]]) -> None:
    body, content_type = sent(fields, [(name, ("f.png", content)) for name, content in files])
    parts = parse_form(body, content_type)
    assert [(part.name, part.text()) for part in parts if not part.is_file] == list(fields.items())
    assert [(part.name, bytes(part.content)) for part in parts if part.is_file] == files


@given(st.binary(max_size=300))
def test_content_like_a_boundary_is_content(content: bytes) -> None:
    """All but the whole delimiter on a line of its own: its parts, its prefix, its line breaks."""
    hostile = b"x--edge" + content + b"\r\n-\r\n--edg"
    assume(b"\r\n--edge" not in hostile)
    body = b'--edge\r\ncontent-disposition: form-data; name="a"\r\n\r\n' + hostile + b"\r\n--edge--\r\n"
    [part] = parse_form(body, TYPE)
    assert bytes(part.content) == hostile


@given(
    st.binary(max_size=300) | st.binary(max_size=120).map(lambda tail: b"--edge\r\n" + tail + b"\r\n--edge--")
)
def test_anything_is_a_form_or_refused(body: bytes) -> None:
    with contextlib.suppress(BadRequest):
        assert sum(len(part.content) for part in parse_form(body, TYPE)) <= len(body)


@given(st.integers(min_value=0, max_value=200))
def test_a_form_that_breaks_off_is_no_form(cut: int) -> None:
    body, content_type = sent({"prompt": "x"}, {"image": ("a.png", b"\x89PNG")})
    end = body.rstrip(b"\r\n-").rfind(b"\r\n--")
    with pytest.raises(BadRequest):
        parse_form(body[: min(cut, end)], content_type)


def test_it_agrees_with_the_standard_library() -> None:
    body, content_type = sent({"a": "é", "b": ""}, [("f", ("x.bin", bytes(range(256)))), ("f", ("y", b""))])
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(
        f"content-type: {content_type}\r\n\r\n".encode() + body
    )
    others = [
        (part.get_param("name", header="content-disposition"), part.get_payload(decode=True))
        for part in message.iter_parts()
    ]
    assert [(part.name, bytes(part.content)) for part in parse_form(body, content_type)] == others


@pytest.mark.parametrize(
    "boundary", ["boundary=edge", 'boundary="edge"', "charset=utf-8; BOUNDARY=edge", "boundary=edge; x=y"]
)
def test_the_boundary_is_found_however_it_is_written(boundary: str) -> None:
    body = b"preamble\r\n--edge\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n--edge--\r\nepilogue"
    [part] = parse_form(body, f"multipart/form-data; {boundary}")
    assert (part.name, part.text(), part.is_file) == ("a", "x", False)


def test_a_file_name_makes_a_file_even_if_it_is_empty() -> None:
    body = b'--edge\r\ncontent-disposition: form-data; filename=""; name="a"\r\n\r\nx\r\n--edge--'
    [part] = parse_form(body, TYPE)
    assert part.is_file
    with pytest.raises(Unprocessable):
        part.text()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--edge",
        b"--edgex\r\n\r\n\r\n--edge--",
        b"--edge\r\n\r\nno headers\r\n--edge--",
        b"--edge\r\ncontent-disposition: form-data\r\n\r\nno name\r\n--edge--",
        b'--edge\r\ncontent-disposition: attachment; name="a"\r\n\r\nx\r\n--edge--',
        b'--edge\r\ncontent-disposition: form-data; name="a"\r\n\r\nnot ended',
        b'--edge\r\ncontent-disposition: form-data; name="a"\r\nx: ' + b"y" * 5000 + b"\r\n\r\nx\r\n--edge--",
        b'--edge\r\ncontent-disposition: form-data; name="a"\r\n\r\nx\r\n' * (MAX_PARTS + 1) + b"--edge--",
    ],
)
def test_what_is_no_form_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_form(body, TYPE)


def test_text_has_to_be_text() -> None:
    body = b'--edge\r\ncontent-disposition: form-data; name="a"\r\n\r\n\xff\r\n--edge--'
    with pytest.raises(Unprocessable) as caught:
        parse_form(body, TYPE)[0].text()
    assert caught.value.param == "a"


def test_only_forms_are_forms() -> None:
    assert is_form("Multipart/Form-Data; boundary=x")
    assert not is_form("application/json")
    assert not is_form("")
    with pytest.raises(BadRequest):
        parse_form(b"--x--", "multipart/form-data")
