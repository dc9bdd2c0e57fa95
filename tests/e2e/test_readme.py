"""The README and the guides: every fenced block is run, or says why not; every link leads somewhere.

A block that is not run has a comment in front of it, `<!-- not run: why -->`. One in a language that is not
known here, or in a form that the parser takes for something else, fails: a new block can't escape.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import httpx
import psycopg
import pytest
from markdown_it import MarkdownIt

from gateway.openapi.events import EVENTS
from infra.local.postgres import binaries
from infra.local.stack import database_url
from tests.e2e.dev import REPOSITORY, Dev, environment, started

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from markdown_it.token import Token

README = REPOSITORY / "README.md"
SETUP = REPOSITORY / "infra" / "docs" / "setup.md"
GUIDES = sorted(SETUP.parent.glob("*.md"))
# As a person reads them: what one guide does to the stack, the next one finds.
DOCUMENTS = [README, SETUP, *(guide for guide in GUIDES if guide != SETUP)]
RUN = ("sh", "python", "json", "sql")
_NOT_RUN = re.compile(r"<!-- not run: \S.*-->\s*", re.ASCII)
_ASSIGNED = re.compile(r"^([A-Za-z_]+)=", re.MULTILINE)
_PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
PRICES = (
    "model,provider,upstream_model,context_length,max_output_tokens,input_modalities,output_modalities,"
    "input,output,source,source_date\n"
    "readme/model,openai-compatible,m,1000,100,text,text,1,2,https://example.org,2026-11-21\n"
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a document."""

    language: str
    text: str
    line: int
    reason: str | None
    """Why it is not run; None: it is."""


def tokens(document: Path) -> Sequence[Token]:
    return _PARSER.parse(document.read_text(encoding="utf-8"))


def blocks(document: Path) -> list[Block]:
    found, reason = [], None
    for token in tokens(document):
        if token.type == "fence":
            line = token.map[0] + 1 if token.map else 0
            found.append(Block(token.info.strip(), token.content, line, reason))
        said = _NOT_RUN.fullmatch(token.content) if token.type == "html_block" else None
        reason = said[0].strip() if said else None
    return found


def block_of(document: Path, language: str, containing: str) -> str:
    """The one block of a language that holds a text."""
    [block] = [b for b in blocks(document) if b.language == language and containing in b.text]
    return block.text


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    with started(tmp_path_factory.mktemp("readme") / "data") as running:
        yield running


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_is_run_or_says_why_not(document: Path) -> None:
    for token in tokens(document):
        assert token.type != "code_block", f"{document.name}:{token.map}: fence it"
        assert "<pre" not in token.content or token.type == "fence", f"{document.name}:{token.map}"
    for block in blocks(document):
        where = f"{document.name}:{block.line}"
        assert block.reason or block.language in RUN, f"{where}: what runs {block.language!r}?"
    text = document.read_text(encoding="utf-8")
    assert text.count("<!-- not run:") == sum(b.reason is not None for b in blocks(document)), document.name


def test_a_block_can_not_escape(tmp_path: Path) -> None:
    document = tmp_path / "guide.md"
    for hidden in (
        "```rust\nfn main() {}\n```",
        "```\ncurl\n```",
        "    curl\n",
        "<pre>curl</pre>",
        "<!-- not run: -->\n```rust\n```",
        "<!-- not run: a reason -->\n\nWords.\n\n```rust\n```",
        "<!-- not run: a reason -->\n\nWords.\n",
    ):
        document.write_text(f"# Guide\n\n{hidden}\n", encoding="utf-8")
        with pytest.raises(AssertionError):
            test_every_block_is_run_or_says_why_not(document)
    document.write_text("# Guide\n\n~~~ sh\ntrue\n~~~\n\n> ```python\n> 1\n> ```\n", encoding="utf-8")
    assert [block.language for block in blocks(document)] == ["sh", "python"]


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_its_blocks_run(document: Path, dev: Dev, tmp_path: Path) -> None:
    (tmp_path / "prices.csv").write_text(PRICES, encoding="utf-8")
    shell = Shell(dev, tmp_path)
    shell.run(shell.as_run(block_of(SETUP, "sh", "api() {")))
    shell.prelude = re.findall(r"^\w+\(\) .*$", block_of(SETUP, "sh", "api() {"), re.MULTILINE)
    for block in blocks(document):
        if block.reason:
            continue
        where = f"{document.name}:{block.line}"
        match block.language:
            case "sh":
                shell.run(shell.as_run(block.text), where)
            case "python":
                path = tmp_path / f"line_{block.line}.py"
                path.write_text(shell.as_run(block.text), encoding="utf-8")
                assert shell.run(f"{sys.executable} -W error::SyntaxWarning {path}", where), where
            case "json":
                differs(json.loads(block.text), last_answer(shell.output), where)
            case "sql":
                with psycopg.connect(shell.variables["DATABASE_URL"]) as connection:
                    connection.execute(block.text.encode())


def test_the_readmes_curl_answers_as_it_shows(dev: Dev, tmp_path: Path) -> None:
    shell = Shell(dev, tmp_path)
    answer = json.loads(shell.run(shell.as_run(block_of(README, "sh", "/v1/chat/completions"))))
    shown = json.loads(block_of(README, "json", "gateway_usage"))
    assert answer["choices"][0]["message"].items() >= shown["choices"][0]["message"].items()
    assert answer["usage"].items() >= shown["usage"].items()
    for name in ("tokens_charged", "cost_usd", "charge_usd", "credits_charged"):
        assert answer["gateway_usage"][name] == shown["gateway_usage"][name]
    assert answer["gateway_usage"].keys() == shown["gateway_usage"].keys()


class Shell:
    """Runs blocks one after the other, with the variables that the ones before have set."""

    def __init__(self, dev: Dev, directory: Path) -> None:
        self._dev = dev
        self._directory = directory
        self.prelude: list[str] = []
        self.output = ""
        port = int(dev.url.rpartition(":")[2])
        data = environment(dev.data_dir, port)
        self.variables = {
            **data,
            # The PostgreSQL that `make dev` runs brings tools of its own version.
            "PATH": f"{binaries()}{os.pathsep}{data['PATH']}",
            "DATABASE_URL": database_url({"DATA_DIR": str(dev.data_dir)}),
        }

    def as_run(self, block: str) -> str:
        """The block with this machine's port and keys in place of the document's."""
        return (
            block.replace("http://127.0.0.1:8000", self._dev.url)
            .replace("ADMIN_KEY=sk_…", f"ADMIN_KEY={self._dev.admin_key}")
            .replace("sk_…", self._dev.demo_key)
            .replace("…", "a-key-of-yours")
            .replace(".venv/bin/sluice", f"{sys.executable} -m infra.cli")
            # Where a name has to be known to the world's name servers, one that needs none stands in for it.
            .replace("llm.example.com", "8.8.8.8")
            .replace("one.example.com", "8.8.4.4")
            .replace("two.example.com", "1.1.1.1")
        )

    def run(self, script: str, where: str = "") -> str:
        """Run it and return what it printed. Every command has to succeed."""
        assigned = sorted(set(_ASSIGNED.findall(script)))
        kept = self._directory / "variables"
        keep = [f"printf '%s\\0' {name} \"${{{name}-}}\" >> {kept}" for name in assigned]
        kept.write_text("", encoding="utf-8")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "\n".join([*self.prelude, script, *keep])],
            env=self.variables,
            cwd=self._directory,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
        assert done.returncode == 0, f"{where}\n{script}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        values = kept.read_text(encoding="utf-8").split("\0")
        self.variables |= dict(zip(values[::2], values[1::2], strict=False))
        self.output = done.stdout
        return done.stdout.replace("\n", "")


def last_answer(output: str) -> Any:
    """The last of the JSON values that a block has printed, one after the other."""
    decoder, rest, answer = json.JSONDecoder(), output.strip(), None
    while rest:
        answer, end = decoder.raw_decode(rest)
        rest = rest[end:].strip()
    return answer


def differs(shown: Any, answer: Any, where: str) -> None:
    """Fail where what a document shows isn't in an answer: fields, their kinds, and texts that are names."""
    if isinstance(shown, dict):
        assert isinstance(answer, dict), where
        for name, value in shown.items():
            assert name in answer, f"{where}: there is no {name!r} in {answer}"
            differs(value, answer[name], f"{where} {name}")
    elif isinstance(shown, list) and shown:
        assert isinstance(answer, list), where
        for value, other in zip(shown, answer, strict=True):
            differs(value, other, where)
    elif isinstance(shown, str) and re.fullmatch(r"[a-z_]+", shown):
        assert answer == shown, where
    else:
        assert answer is None or isinstance(answer, type(shown)) or isinstance(shown, int | float), where


# Codes


def told_codes() -> dict[str, set[str]]:
    """The codes that the guide explains, each with its statuses."""
    found: dict[str, set[str]] = {}
    for line in (SETUP.parent / "troubleshooting.md").read_text(encoding="utf-8").splitlines():
        if re.match(r"\| \d", line):
            _, statuses, codes, *_ = line.split("|")
            for code in re.findall(r"`(\w+)`", codes):
                found.setdefault(code, set()).update(re.findall(r"\d+", statuses))
    return found


def test_every_code_is_explained() -> None:
    """Those of the code, and no other."""
    texts = [path.read_text(encoding="utf-8") for path in (REPOSITORY / "functions").rglob("*.py")]
    pattern = re.compile(r'(?<![a-z_])(?:code|default_code(?:: ClassVar\[str \| None\])?) ?= ?"(\w+)"')
    known = {code for text in texts for code in pattern.findall(text)}
    assert known - told_codes().keys() == set()
    for code in told_codes():
        assert any(f'"{code}"' in text for text in texts) or code.endswith("_taken"), code


def test_its_statuses_are_the_documents(dev: Dev) -> None:
    document = httpx.get(f"{dev.url}/openapi.json").raise_for_status().json()
    told = told_codes()
    seen = set()
    for methods in document["paths"].values():
        for operation in methods.values():
            for status, response in operation.get("responses", {}).items():
                for code in re.findall(r'"code": "(\w+)"', json.dumps(response)):
                    if int(status) >= 400 and code in told:
                        assert status in told[code], (status, code)
                        seen.add(code)
    assert len(seen) > 30


# What else has to be told

# Of AWS's own making, of Lambda's, or the local stack's.
NOT_FOR_OPERATORS = {
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_XRAY_DAEMON_ADDRESS",
    "POWERTOOLS_METRICS_NAMESPACE",
    "SLUICE_SPOOL_DIR",
    "SLUICE_SPOOL_QUEUE_URL",
    "SLUICE_STRIPE_URL",
}


def test_every_setting_event_and_alarm_is_explained() -> None:
    guides = {path.stem: path.read_text(encoding="utf-8") for path in GUIDES}
    settings = (REPOSITORY / "functions" / "gateway" / "settings.py").read_text(encoding="utf-8")
    variables = set(re.findall(r'^    "([A-Z_]+)": "\w+",$', settings, re.MULTILINE))
    assert len(variables) > 20
    assert {name for name in variables if f"`{name}`" not in "".join(guides.values())} == NOT_FOR_OPERATORS
    assert [event for event in EVENTS if event not in guides["alerts-and-telemetry"]] == ["webhook.test"]
    template = (REPOSITORY / "template.yaml").read_text(encoding="utf-8")
    alarms = re.findall(r"^  (\w+Alarm):$", template, re.MULTILINE)
    each, of_functions = guides["operations"], [name for name in alarms if name.endswith("ErrorsAlarm")]
    assert of_functions
    assert [name for name in alarms if f"`{name}`" not in each] == [
        name for name in of_functions if name != "ServerErrorsAlarm"
    ]


# Links


def links(document: Path) -> Iterator[str]:
    for token in tokens(document):
        for child in token.children or ():
            if child.type in {"link_open", "image"}:
                yield str(child.attrs.get("href") or child.attrs.get("src"))
        if token.type in {"html_block", "inline"}:
            yield from re.findall(r'(?:src|srcset|href)="([^" ]+)', token.content)


def anchors(document: Path) -> set[str]:
    """The names of a document's headings, as GitHub makes them."""
    found = set()
    for opened, inline in pairwise(tokens(document)):
        if opened.type == "heading_open":
            words = "".join(c.content for c in inline.children or () if c.type in {"text", "code_inline"})
            found.add(re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-"))
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_its_links_lead_somewhere(document: Path) -> None:
    for link in links(document):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme in {"https", "http"}, link
            assert parts.hostname, link
            continue
        target = (document.parent / unquote(parts.path)).resolve() if parts.path else document
        assert target.exists(), f"{document.name}: {link}"
        assert target.is_relative_to(REPOSITORY), link
        if parts.fragment:
            assert parts.fragment in anchors(target), f"{document.name}: {link}"


def test_every_guide_is_linked_from_the_readme() -> None:
    linked = {(README.parent / link).resolve() for link in links(README) if not urlsplit(link).scheme}
    assert linked >= set(GUIDES)


def test_pictures_are_small_and_come_in_both_schemes() -> None:
    pictures = sorted((SETUP.parent / "pictures").iterdir())
    used = {(README.parent / link).resolve() for link in links(README)}
    for picture in pictures:
        assert picture.suffix == ".png"
        assert picture.stat().st_size < 200_000, picture.name
        assert picture in used, f"{picture.name} is shown nowhere"
        other = picture.name.replace("light", "dark") if "light" in picture.name else None
        assert other is None or picture.with_name(other).exists()
