"""Put Swagger UI, Redoc and uPlot where the gateway serves them from: the few files that a page needs.

They come as npm packs them, each pinned by version and hash. npm does not install them: what they name as
dependencies is in their bundles already, and would be a hundred packages more, with scripts that run.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from infra.local import paths

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TARGET = paths.FUNCTIONS / "gateway" / "assets" / "vendor"

# Source maps stay behind: a browser's tools would ask for them in vain.
_SOURCE_MAP = re.compile(rb"(?://# |/\*# )sourceMappingURL=\S+\s*\Z")


# Redoc's own logo, below its menu: the one thing in it that would be fetched from elsewhere.
_LOGO = b"https://cdn.redoc.ly/redoc/logo-mini.svg"
_NO_PICTURE = b"data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="


class AssetError(RuntimeError):
    """A package can't be had, or is not the one that was pinned."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package of npm's: its hash as npm writes it, and which of its files become which of ours."""

    name: str
    version: str
    integrity: str
    files: Mapping[str, str]
    exports: Mapping[str, str] = field(default_factory=dict)
    """Our file → the global variable that the script sets: what the file then exports as a module."""


PACKAGES = (
    Package(
        "swagger-ui-dist",
        "5.35.0",
        "sha512-U06rpMtW9V3XPGOBeamTUSr0Z09jMX4IJuANpE/EZbAhw0G8CgwrzU4YmXkn/h0wCDNsXdGarTNNHC3sU8yVUQ==",
        {
            "swagger-ui.css": "swagger-ui.css",
            "swagger-ui-bundle.js": "swagger-ui-bundle.js",
            "swagger-ui-bundle.js.LICENSE.txt": "swagger-ui-bundle.js.LICENSE.txt",
            "LICENSE": "swagger-ui.LICENSE.txt",
            "NOTICE": "swagger-ui.NOTICE.txt",
        },
    ),
    # 3 wants React and sends telemetry.
    Package(
        "redoc",
        "2.5.4",
        "sha512-M6jWhG1qoBnH6TFmzJnstyCZ87HmOY/UzDm78mHiYihEdlV/YcS9ogOo1NlElnJMeLsyxHFe2yFc4sNjHTrABQ==",
        {
            "bundles/redoc.standalone.js": "redoc.standalone.js",
            "bundles/redoc.standalone.js.LICENSE.txt": "redoc.standalone.js.LICENSE.txt",
            "LICENSE": "redoc.LICENSE.txt",
        },
    ),
    # Its own ES module is not minified, and three times the size.
    Package(
        "uplot",
        "1.6.32",
        "sha512-KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw==",
        {
            "dist/uPlot.iife.min.js": "uplot.js",
            "dist/uPlot.min.css": "uplot.css",
            "LICENSE": "uplot.LICENSE.txt",
        },
        {"uplot.js": "uPlot"},
    ),
)

AXE = Package(
    "axe-core",
    "4.14.1",
    "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
    {"axe.min.js": "axe.js"},
)
"""What the browser tests look for barriers with. It goes into no package of ours."""


def file_names() -> list[str]:
    """Return the names of all files that the build makes."""
    return [name for package in PACKAGES for name in package.files.values()]


def pack(package: Package) -> bytes:
    """Return a package as npm has it. Raises AssetError."""
    with tempfile.TemporaryDirectory() as scratch:
        command = ["npm", "pack", f"{package.name}@{package.version}", "--silent", "--ignore-scripts"]
        try:
            # In its folder, for the sake of its .npmrc.
            subprocess.run(
                [*command, "--pack-destination", scratch],
                check=True,
                cwd=paths.NODE_MODULES.parent,
                stdout=subprocess.DEVNULL,
            )
        except FileNotFoundError as error:
            raise AssetError("npm is missing: Sluice needs Node 20 or later") from error
        except subprocess.CalledProcessError as error:
            raise AssetError(f"npm has no {package.name} {package.version} to give") from error
        [archive] = Path(scratch).iterdir()
        return archive.read_bytes()


def unpack(package: Package, archive: bytes) -> dict[str, bytes]:
    """Return our files of a package. Raises AssetError unless it is the one that was pinned."""
    algorithm, _, expected = package.integrity.partition("-")
    if hashlib.new(algorithm, archive).digest() != base64.b64decode(expected):
        raise AssetError(f"{package.name} {package.version} is not what was pinned")
    files = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        for theirs, ours in package.files.items():
            member = tar.extractfile(f"package/{theirs}")
            if member is None:
                raise AssetError(f"{package.name} {package.version} has no {theirs}")
            content = _SOURCE_MAP.sub(b"", member.read()).replace(_LOGO, _NO_PICTURE)
            exported = package.exports.get(ours)
            files[ours] = (
                content if exported is None else content + f"\nexport default {exported};\n".encode()
            )
    return files


def build_assets(target: Path = TARGET, *, get: Callable[[Package], bytes] = pack) -> list[Path]:
    """Write all files into `target` and return them. Raises AssetError."""
    made = {name: content for package in PACKAGES for name, content in unpack(package, get(package)).items()}
    return _write(made, target)


def build_axe(target: Path | None = None) -> Path:
    """Return axe-core's file, in `target` or beside npm's packages, where it is put first if it isn't there.

    Raises AssetError.
    """
    [name] = AXE.files.values()
    target = target or paths.NODE_MODULES / f".{AXE.name}-{AXE.version}"
    if not (target / name).exists():
        _write(unpack(AXE, pack(AXE)), target)
    return target / name


def _write(made: Mapping[str, bytes], target: Path) -> list[Path]:
    target.mkdir(parents=True, exist_ok=True)
    for name, content in made.items():
        partial = target / f"{name}.partial"
        partial.write_bytes(content)
        partial.replace(target / name)
    return [target / name for name in made]


if __name__ == "__main__":
    for built in [*build_assets(), build_axe()]:
        print(f"wrote {built.relative_to(paths.REPOSITORY)}")
