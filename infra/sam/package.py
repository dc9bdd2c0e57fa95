"""The package that Lambda runs: our functions and the locked requirements, for one architecture.

`python -m infra.sam.package build arm64 DIRECTORY` makes it, on a machine of any architecture and with any
Python; `check` looks at what was made. All functions share one package: they differ in their handler alone.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from infra.local import page_assets, paths
from infra.local.tokenizer import VOCABULARIES

PYTHON = "3.13"
# Amazon Linux 2023 has glibc 2.34: these wheels run on it, and all that we lock have them.
PLATFORMS = {"x86_64": "x86_64-manylinux_2_28", "arm64": "aarch64-manylinux_2_28"}
MAX_ZIPPED_BYTES = 50 * 1024 * 1024
"""What Lambda takes in a direct upload, and a bound to keep far from: INIT reads all of it."""

REQUIREMENTS = paths.REPOSITORY / "requirements.txt"
_CACHE = paths.REPOSITORY / ".aws-sam" / "packages"
_UV = paths.REPOSITORY / ".venv" / "bin" / "uv"

# The managed runtime carries them: for the way to the queue, and for a secret without the extension.
ON_THE_RUNTIME = ("boto3", "botocore", "s3transfer")
_NOT_CODE = {".c", ".h", ".pyi", ".pyx", ".pxd", ".typed"}
_TEST_FOLDERS = {"test", "tests", "testing"}
# importlib.metadata reads these two; the rest tells installers what to remove.
_METADATA = {"METADATA", "entry_points.txt"}

# ELF: e_machine, 16 bits at offset 18, little-endian for both.
_ELF = b"\x7fELF"
_MACHINES = {"x86_64": 0x3E, "arm64": 0xB7}
_EXTENSION_TAG = re.compile(r"\.cpython-(\d+)")


class PackageError(RuntimeError):
    """A package can't be made, or is not what it should be; the message says why."""


def build(architecture: str, target: Path) -> None:
    """Fill the directory `target`, which must be empty or absent. Raises PackageError."""
    if architecture not in PLATFORMS:
        raise PackageError(f"ARCHITECTURE must be {' or '.join(PLATFORMS)}, not {architecture!r}")
    python = _find_python()
    if python is None:
        print(f"sluice: no Python {PYTHON} to compile with: cold starts will be slower", file=sys.stderr)
    shutil.copytree(_requirements(architecture, python), target, dirs_exist_ok=True, copy_function=_link)
    ours = _copy_functions(target)
    if python is not None:
        _compile(python, target, ours)


def check(package: Path, architecture: str) -> list[str]:
    """Return what is wrong with a package, a line each; nothing where all is well."""
    faults = []
    files = [path for path in sorted(package.rglob("*")) if path.is_file()]
    for path in files:
        name = path.relative_to(package).as_posix()
        if set(Path(name).parts[:-1]) & _TEST_FOLDERS or Path(name).name.startswith("test_"):
            faults.append(f"{name} is a test")
        if path.suffix == ".sql":
            faults.append(f"{name} is SQL")
        if name.split("/")[0].removesuffix(".py") in ON_THE_RUNTIME:
            faults.append(f"{name} is on the runtime already")
        faults += _faults_of_binary(path, name, architecture)
    faults += [f"{needed} is missing" for needed in _needed() if not (package / needed).is_file()]
    bootstrap = package / "chat" / "bootstrap"
    if bootstrap.is_file() and not os.access(bootstrap, os.X_OK):
        faults.append("chat/bootstrap can't be executed")
    size = zipped_bytes(package)
    if size > MAX_ZIPPED_BYTES:
        faults.append(f"{size:,} bytes zipped are more than {MAX_ZIPPED_BYTES:,}")
    return faults


def zipped_bytes(package: Path) -> int:
    """Return the size of the archive that SAM uploads."""
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(package.rglob("*")):
                archive.write(path, path.relative_to(package))
        return file.tell()


def packaged_functions() -> list[str]:
    """Return the folders of the functions that share this package: all but those that are images."""
    return sorted(
        path.parent.name for path in paths.FUNCTIONS.glob("*/handler.py") if not _is_image(path.parent)
    )


def _is_image(folder: Path) -> bool:
    return (folder / "Dockerfile").is_file()


def _needed() -> list[str]:
    """Every handler of ours, chat's wrapper, the tokenizers' data and what the pages are made of."""
    handlers = [f"{name}/handler.py" for name in packaged_functions()]
    tokenizers = [f"gateway/tokenizers/{vocabulary.file_name}" for vocabulary in VOCABULARIES]
    pages = [
        (page_assets.TARGET / name).relative_to(paths.FUNCTIONS).as_posix()
        for name in page_assets.file_names()
    ]
    return [*handlers, "chat/bootstrap", *tokenizers, *pages]


def _faults_of_binary(path: Path, name: str, architecture: str) -> list[str]:
    with path.open("rb") as file:
        head = file.read(20)
    if not head.startswith(_ELF):
        return [f"{name} is of another system"] if path.suffix in {".dylib", ".pyd", ".dll"} else []
    machine = int.from_bytes(head[18:20], "little")
    if machine != _MACHINES[architecture]:
        return [f"{name} is compiled for machine {machine:#x}, not for {architecture}"]
    tag = _EXTENSION_TAG.search(path.name)
    if tag and tag[1] != PYTHON.replace(".", ""):
        return [f"{name} is compiled for another Python than {PYTHON}"]
    return []


def _requirements(architecture: str, python: str | None) -> Path:
    """Return a directory with the locked requirements, installed, pruned and compiled. Made once a lock."""
    recipe = hashlib.sha256(REQUIREMENTS.read_bytes() + Path(__file__).read_bytes()).hexdigest()[:16]
    made = _CACHE / f"{architecture}-{recipe}{'' if python is None else '-compiled'}"
    if made.is_dir():
        return made
    _CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE) as scratch:
        installed = Path(scratch) / "installed"
        _run(
            [
                str(_UV) if _UV.exists() else "uv",
                *("pip", "install", "--quiet", "--no-config", "--target", str(installed)),
                *("--python-version", PYTHON, "--python-platform", PLATFORMS[architecture]),
                *("--only-binary", ":all:", "--require-hashes", "--requirement", str(REQUIREMENTS)),
            ]
        )
        _prune(installed)
        if python is not None:
            _compile(python, installed, sorted(installed.iterdir()))
        # SAM builds one function after the other, but two builds may run side by side: the first wins.
        try:
            installed.rename(made)
        except OSError:
            if not made.is_dir():
                raise
    return made


def _prune(installed: Path) -> None:
    """Remove what Lambda has no use for."""
    for name in ON_THE_RUNTIME:
        for path in [installed / name, *installed.glob(f"{name}-*.dist-info")]:
            shutil.rmtree(path, ignore_errors=True)
    for path in sorted(installed.rglob("*"), reverse=True):
        if path.is_dir():
            if path.name in _TEST_FOLDERS | {"__pycache__"} or path == installed / "bin":
                shutil.rmtree(path)
            elif not any(path.iterdir()):
                path.rmdir()
        elif _is_useless(path.relative_to(installed)):
            path.unlink()


def _is_useless(path: Path) -> bool:
    installers = path.parts[0].endswith(".dist-info") and path.name not in _METADATA
    return installers or path.suffix in _NOT_CODE or path.name == ".lock" or path.name.startswith("test_")


def _copy_functions(target: Path) -> list[Path]:
    """Copy our folders into the package and return what they have become."""
    copied = []
    for folder in sorted(path for path in paths.FUNCTIONS.iterdir() if path.is_dir()):
        if not folder.name.startswith((".", "__")) and not _is_image(folder):
            copied.append(target / folder.name)
            shutil.copytree(folder, copied[-1], ignore=shutil.ignore_patterns("__pycache__", ".*"))
    if missing := [name for name in _needed() if not (target / name).is_file()]:
        raise PackageError(f"missing: {', '.join(missing)} (`make build` makes what is generated)")
    return copied


def _compile(python: str, root: Path, parts: list[Path]) -> None:
    """Compile sources, as Lambda can't keep what it compiles: every cold start would do it again.

    Chat's imports took 0.2 s so, and 0.5 s without. By hash and unchecked: an archive keeps no exact times.
    Only a Python of the runtime's version can do it.
    """
    options = ["-q", "-j", "0", "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/var/task"]
    _run([python, "-I", "-m", "compileall", *options, *map(str, parts)])


def _find_python() -> str | None:
    """Return a Python of the runtime's version: on PATH or among pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    on_path = shutil.which(f"python{PYTHON}")
    candidates = [
        *([on_path] if on_path else []),
        *map(str, sorted(pyenv.glob(f"versions/{PYTHON}.*/bin/python{PYTHON}"))),
    ]
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    for candidate in candidates:
        # One on PATH may be a shim of pyenv's that has nothing behind it.
        told = subprocess.run([candidate, "-I", "-c", ask], capture_output=True, text=True, check=False)
        if told.stdout.strip() == PYTHON:
            return candidate
    return None


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError as error:
        raise PackageError(f"{command[0]} is missing: `make build` installs it") from error
    except subprocess.CalledProcessError as error:
        raise PackageError(f"{Path(command[0]).name} failed with status {error.returncode}") from error


def _link(source: str, target: str) -> None:
    """Link a file where the file system allows it: packages are read, never written to."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def report(package: Path, architecture: str) -> str:
    """Return a line on a good package; PackageError with every fault of another."""
    if faults := check(package, architecture):
        raise PackageError("\n".join([f"{package} is no good package:", *faults]))
    return f"{package.name}: {architecture}, {zipped_bytes(package) / 1e6:.1f} MB zipped"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m infra.sam.package", description=__doc__)
    parser.add_argument("action", choices=["build", "check"])
    parser.add_argument("architecture", choices=list(PLATFORMS))
    parser.add_argument("directories", type=Path, nargs="+", metavar="DIRECTORY")
    options = parser.parse_args(arguments)
    try:
        for directory in options.directories:
            if options.action == "build":
                build(options.architecture, directory)
            else:
                print(report(directory, options.architecture))
    except PackageError as error:
        print(f"sluice: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
