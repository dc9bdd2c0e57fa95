"""The vocabularies are tiktoken's own, or none."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from infra.local import paths
from infra.local.tokenizer import VOCABULARIES, VocabularyError, build_tokenizers, unpack

if TYPE_CHECKING:
    from pathlib import Path


def test_the_files_have_the_hashes_that_tiktoken_demands(tmp_path: Path) -> None:
    written = build_tokenizers(tmp_path)
    assert [path.name for path in written] == [vocabulary.file_name for vocabulary in VOCABULARIES]
    for vocabulary in VOCABULARIES:
        content = (tmp_path / vocabulary.file_name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == vocabulary.sha256
    assert build_tokenizers(tmp_path) == []


def test_a_damaged_file_is_built_again(tmp_path: Path) -> None:
    path = tmp_path / VOCABULARIES[0].file_name
    path.write_bytes(b"IQ== 0\n")
    assert path in build_tokenizers(tmp_path)


def test_other_data_than_expected_is_refused_and_not_written(tmp_path: Path) -> None:
    source = tmp_path / "ranks"
    source.mkdir()
    with pytest.raises(VocabularyError, match="npm ci"):
        build_tokenizers(tmp_path / "out", source)
    (source / "o200k_base.js").write_text('export default {"bpe_ranks":"! 0 IQ=="};', encoding="utf-8")
    with pytest.raises(VocabularyError, match="does not hold the o200k_base"):
        build_tokenizers(tmp_path / "out", source)
    assert list((tmp_path / "out").iterdir()) == []


def test_ranks_count_on_from_each_lines_first() -> None:
    assert unpack('export default {"bpe_ranks":"! 0 IQ== Ig==\\n! 7 Iw=="};\n') == b"IQ== 0\nIg== 1\nIw== 7\n"


def test_the_build_puts_them_where_the_gateway_looks() -> None:
    assert paths.FUNCTIONS in paths.TOKENIZERS.parents
