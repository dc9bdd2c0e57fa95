"""Files of the package as responses: the document's pages and the dashboard, and what they are made of.

Each file is sent under a name that holds its hash, so that it may be kept for good; those of the dashboard,
which name each other, under a folder that holds the hash of all. Nothing is loaded from another origin, and
no page holds a script or a style of its own.
"""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.responses import Response

from gateway.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

FOLDER = Path(__file__).parent
VENDOR = "vendor"
"""Where the build puts the files of others (infra.local.assets)."""

FILES: Mapping[str, str] = {
    "docs.js": "docs.js",
    "redoc.js": "redoc.js",
    "pages.css": "pages.css",
    "swagger-ui.css": f"{VENDOR}/swagger-ui.css",
    "swagger-ui-bundle.js": f"{VENDOR}/swagger-ui-bundle.js",
    "redoc.standalone.js": f"{VENDOR}/redoc.standalone.js",
}
"""Name → where it lies in the folder."""

DASHBOARD = "dashboard"
"""The folder of the dashboard's modules and its style."""
DASHBOARD_VENDORED: Mapping[str, str] = {
    "vendor/uplot.js": f"{VENDOR}/uplot.js",
    "vendor/uplot.css": f"{VENDOR}/uplot.css",
}

MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_DIGEST_CHARS = 16
_MARK = re.compile(r"\{\{ ([a-z_.-]+) \}\}")
_SENT_NAME = re.compile(r"([a-z.-]+)\.([0-9a-f]{16})(\.[a-z]+)")

_FOR_GOOD = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"


@dataclass(frozen=True, slots=True)
class File:
    """A file of the package, and the beginning of its SHA-256 in hexadecimal."""

    body: bytes
    digest: str
    media_type: str


@functools.cache
def read(place: str) -> File:
    """Return a file of the folder. Raises FileNotFoundError where the build has not put it there."""
    path = FOLDER / place
    body = path.read_bytes()
    return File(body, hashlib.sha256(body).hexdigest()[:_DIGEST_CHARS], MEDIA_TYPES[path.suffix])


def sent_name(name: str) -> str:
    """Return the name under which a file is sent: with its hash before its suffix."""
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{read(FILES[name]).digest}.{suffix}"


def asset(request: Request, name: str) -> Response:
    """Return the file that has been sent as `name`. Raises NotFound (404).

    While a deployment goes on, a page of one version may ask the other for its files: it gets what there is,
    and does not keep it.
    """
    parts = _SENT_NAME.fullmatch(name)
    place = FILES.get(f"{parts[1]}{parts[3]}") if parts else None
    if parts is None or place is None:
        raise NotFound("There is no such file.", code="file_not_found")
    file = read(place)
    cached = _FOR_GOOD if parts[2] == file.digest else _ASK_AGAIN
    return tagged(request, file.body, file.media_type, digest=file.digest, cache_control=cached)


@dataclass(frozen=True, slots=True)
class Bundle:
    """Files that name each other by their places in a folder, and the hash of all of them."""

    files: Mapping[str, File]
    digest: str


@functools.cache
def dashboard() -> Bundle:
    """Return the dashboard's files by their places in its folder. Raises FileNotFoundError as `read` does."""
    folder = FOLDER / DASHBOARD
    places = {
        path.relative_to(folder).as_posix(): path.relative_to(FOLDER).as_posix()
        for path in folder.rglob("*")
        if path.suffix in MEDIA_TYPES and path.suffix != ".html"
    }
    files = {name: read(place) for name, place in sorted({**places, **DASHBOARD_VENDORED}.items())}
    digest = hashlib.sha256("".join(f"{name} {file.digest}\n" for name, file in files.items()).encode())
    return Bundle(files, digest.hexdigest()[:_DIGEST_CHARS])


def dashboard_file(request: Request, digest: str, name: str) -> Response:
    """Return a file of the dashboard. Raises NotFound (404). Of another version's, as `asset` does."""
    bundle = dashboard()
    file = bundle.files.get(name)
    if file is None:
        raise NotFound("There is no such file.", code="file_not_found")
    cached = _FOR_GOOD if digest == bundle.digest else _ASK_AGAIN
    return tagged(request, file.body, file.media_type, digest=file.digest, cache_control=cached)


def page(request: Request, place: str, content_security_policy: str, **marks: str) -> Response:
    """Return a page, with its marks and the names of its files filled in."""
    file = read(place)
    body = _MARK.sub(
        lambda mark: marks[mark[1]] if mark[1] in marks else sent_name(mark[1]), file.body.decode()
    ).encode()
    headers = {"content-security-policy": content_security_policy, "referrer-policy": "no-referrer"}
    return tagged(request, body, file.media_type, headers=headers)


def tagged(
    request: Request,
    body: bytes,
    media_type: str,
    *,
    digest: str | None = None,
    cache_control: str = _ASK_AGAIN,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return a body with its ETag, or 304 where the client has it."""
    digest = digest or hashlib.sha256(body).hexdigest()[:_DIGEST_CHARS]
    told = {
        "etag": f'"{digest}"',
        "cache-control": cache_control,
        "x-content-type-options": "nosniff",
        **(headers or {}),
    }
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if told["etag"] in known:
        return Response(status_code=304, headers=told)
    return Response(body, headers=told | {"content-type": media_type})
