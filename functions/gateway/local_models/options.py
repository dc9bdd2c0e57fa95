"""What the operator of the local models sets, read from environment variables."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

MODELS = "SLUICE_LOCAL_MODELS"
PRELOAD = "SLUICE_LOCAL_MODELS_PRELOAD"
KEY = "SLUICE_LOCAL_MODELS_KEY"
KEY_HASH = "SLUICE_LOCAL_MODELS_KEY_SHA256"
HOST = "SLUICE_LOCAL_MODELS_HOST"
PORT = "SLUICE_LOCAL_MODELS_PORT"
QUEUE = "SLUICE_LOCAL_MODELS_QUEUE"
THREADS = "SLUICE_LOCAL_MODELS_THREADS"

DEFAULT_MODELS = "gpt2"
DEFAULT_PORT = 8002
DEFAULT_QUEUE = 8
MIN_KEY_CHARS = 16

_SHORT_NAMES = {"gpt2": "openai-community/gpt2"}
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_HASH = re.compile(r"[0-9a-f]{64}")
_TRUE = {"true": True, "1": True, "false": False, "0": False, "": False}
_LARGEST_PORT = 65535


class LocalModelsError(Exception):
    """The operator has to put something right; the message says what, and shows no secret."""


@dataclass(frozen=True, slots=True)
class LocalModelsOptions:
    """How the local models are served."""

    models: Mapping[str, str]
    """Name → a repository on the Hugging Face Hub, or a directory."""
    preload: bool = False
    """Whether all are loaded before the first request, and not each at its own first one."""
    key_hash: str | None = field(default=None, repr=False)
    """SHA-256 of the key that callers present, in hexadecimal; None: none is asked for."""
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    queue: int = DEFAULT_QUEUE
    """How many requests of one model may wait while another is answered."""
    threads: int = 1
    """How many threads one generation computes with."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], *, exposed: bool = False) -> Self:
        """Read the options. Raises LocalModelsError, which names the variable.

        A server that others than this machine reach needs a key: by its host, or as it is `exposed`.
        """
        host = _get(environ, HOST) or "127.0.0.1"
        key_hash = _key_hash(environ)
        if key_hash is None and (exposed or host not in _LOOPBACK):
            raise LocalModelsError(f"{KEY} must be set where others than this machine reach the models")
        preload = _get(environ, PRELOAD).lower()
        if preload not in _TRUE:
            raise LocalModelsError(f"{PRELOAD} must be true or false")
        return cls(
            models=read_models(_get(environ, MODELS) or DEFAULT_MODELS),
            preload=_TRUE[preload],
            key_hash=key_hash,
            host=host,
            port=_number(environ, PORT, DEFAULT_PORT, 1, _LARGEST_PORT),
            queue=_number(environ, QUEUE, DEFAULT_QUEUE, 0, 10_000),
            threads=_number(environ, THREADS, os.cpu_count() or 1, 1, 256),
        )

    def admits(self, key: str) -> bool:
        """Return whether this is the key, in a time that does not tell how much of it is right."""
        if self.key_hash is None:
            return True
        given = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        return hmac.compare_digest(given, self.key_hash)


def read_models(text: str) -> dict[str, str]:
    """Return name → source of a list such as `gpt2,mine=/opt/models/mine`. Raises LocalModelsError.

    A source without a name is called as it is; `gpt2` is openai-community/gpt2.
    """
    models: dict[str, str] = {}
    for entry in filter(None, map(str.strip, text.split(","))):
        name, equals, source = (part.strip() for part in entry.partition("="))
        source = source if equals else _SHORT_NAMES.get(name, name)
        if not _NAME.fullmatch(name) or not source:
            raise LocalModelsError(f"{MODELS} must be names and sources such as gpt2=openai-community/gpt2")
        if name in models:
            raise LocalModelsError(f"{MODELS} names {name} twice")
        models[name] = source
    if not models:
        raise LocalModelsError(f"{MODELS} names no model")
    return models


def _key_hash(environ: Mapping[str, str]) -> str | None:
    key, key_hash = _get(environ, KEY), _get(environ, KEY_HASH).lower()
    if key and key_hash:
        raise LocalModelsError(f"{KEY} and {KEY_HASH} are both set: one is enough")
    if key and len(key) < MIN_KEY_CHARS:
        raise LocalModelsError(f"{KEY} needs at least {MIN_KEY_CHARS} characters")
    if key_hash and not _HASH.fullmatch(key_hash):
        raise LocalModelsError(f"{KEY_HASH} must be 64 hexadecimal digits")
    return hashlib.sha256(key.encode()).hexdigest() if key else key_hash or None


def _number(environ: Mapping[str, str], variable: str, default: int, least: int, most: int) -> int:
    text = _get(environ, variable)
    if not text:
        return default
    if not text.isascii() or not text.isdecimal() or not least <= int(text[:19]) <= most:
        raise LocalModelsError(f"{variable} must be a number from {least} to {most}")
    return int(text)


def _get(environ: Mapping[str, str], variable: str) -> str:
    return environ.get(variable, "").strip()
