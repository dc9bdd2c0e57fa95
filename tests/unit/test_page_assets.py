"""The pages' files are the ones that were pinned, and nothing in them is fetched from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import io
import posixpath
import re
import tarfile
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gateway import assets
from infra.local import page_assets, paths
from infra.local.page_assets import AssetError, Package, build_assets, unpack

if TYPE_CHECKING:
    from pathlib import Path


def archive(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}.js")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def package(packed: bytes, *names: str) -> Package:
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(packed).digest()).decode()
    return Package("it", "1.0.0", integrity, {f"{name}.js": f"{name}.js" for name in names})


def test_other_content_than_was_pinned_is_refused_and_not_written(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="not what was pinned"):
        build_assets(tmp_path / "out", get=lambda _package: archive(main=b"mined()"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(AssetError, match="not what was pinned"):
        unpack(package(archive(main=b"one"), "main"), archive(main=b"two"))


def test_the_address_of_a_source_map_is_taken_out_and_no_other_text() -> None:
    code = b'worker("//# sourceMappingURL=inner.map");done();'
    packed = archive(main=code + b"\n//# sourceMappingURL=main.js.map\n")
    assert unpack(package(packed, "main"), packed) == {"main.js": code + b"\n"}


def test_a_file_that_the_package_lost_is_told() -> None:
    packed = archive(main=b"")
    with pytest.raises(KeyError, match=r"other\.js"):
        unpack(package(packed, "other"), packed)


def test_a_script_becomes_a_module_where_one_is_wanted() -> None:
    packed = archive(main=b"var it=1;")
    wanted = replace(package(packed, "main"), exports={"main.js": "it"})
    assert unpack(wanted, packed) == {"main.js": b"var it=1;\nexport default it;\n"}


def test_the_build_makes_what_the_gateway_serves() -> None:
    assert page_assets.TARGET == assets.FOLDER / assets.VENDOR
    vendored = {
        place.removeprefix(f"{assets.VENDOR}/")
        for place in [*assets.FILES.values(), *assets.DASHBOARD_VENDORED.values()]
        if place.startswith(assets.VENDOR)
    }
    assert vendored <= set(page_assets.file_names())
    assert paths.FUNCTIONS in page_assets.TARGET.parents


@pytest.mark.parametrize("name", [*sorted(assets.FILES), *sorted(assets.dashboard().files)])
def test_no_file_names_a_place_that_a_page_would_load_from(name: str) -> None:
    file = assets.dashboard().files.get(name) or assets.read(assets.FILES[name])
    text = file.body.decode()
    loads = re.findall(r"""(?:src|url\(|import\(|@import)\s*[:=(]?\s*["'`]?(https?:[^"'`)\s]+)""", text)
    assert loads == []


@pytest.mark.parametrize("page", ["docs.html", "redoc.html", "dashboard/index.html"])
def test_a_page_holds_no_script_and_no_style_of_its_own(page: str) -> None:
    text = assets.read(page).body.decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)", text)
    assert "<style" not in text
    assert not re.search(r"\s(?:style|on\w+)=", text)


OURS = sorted(name for name in assets.dashboard().files if name.endswith(".js") and "vendor/" not in name)
# What parses text as HTML, runs it, or keeps it beyond the page.
FORBIDDEN = re.compile(
    r"\.(?:inner|outer)HTML|insertAdjacentHTML|document\.write|createContextualFragment|setHTML|DOMParser|srcdoc"
    r"|\beval\(|new Function|document\.cookie|indexedDB|console\.|postMessage"
)


@pytest.mark.parametrize("name", OURS)
def test_a_module_of_the_dashboard_parses_no_html_and_keeps_no_secret(name: str) -> None:
    # A line that the reader is to put into a program of its own.
    text = assets.dashboard().files[name].body.decode().replace("console.log(answer.", "")
    assert FORBIDDEN.findall(text) == []
    # Of storage: the scheme, and the nonce of a link.
    stored = set(re.findall(r"(?:local|session)Storage\.setItem\(([^,]+),", text))
    assert stored <= {'"scheme"', "LINK"}


@pytest.mark.parametrize("name", OURS)
def test_a_module_imports_what_there_is(name: str) -> None:
    files = assets.dashboard().files
    text = files[name].body.decode()
    for place in re.findall(r"""(?:from|import\() ?["'](\.[^"']+)["']""", text):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(name), place))
        assert path in files, place
