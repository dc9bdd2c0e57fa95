"""The peers: installed once into a cache beside the tree, pinned, and started as their makers say."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from infra.local.processes import HOST, StackError, free_port
from tests.benchmarks import cpu
from tests.benchmarks.contenders import PROVIDER_KEY, Contender, started
from tests.benchmarks.fixed_answer import PLAIN_MODEL, STREAM_MODEL
from tests.benchmarks.load import Endpoint
from tests.benchmarks.streams import PACES
from tests.benchmarks.upstream import PATH, PLAIN, STREAM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.benchmarks.upstream import Upstream

LITELLM = "LiteLLM"
PORTKEY = "Portkey"
# The newest of which every part could be had when this was written. A newer one is a deliberate change.
LITELLM_VERSION = "1.106.2"
PORTKEY_VERSION = "1.15.2"

_INSTALL_SECONDS = 900


@contextlib.contextmanager
def litellm(upstream: Upstream, paced_url: str, directory: Path, cache: Path) -> Iterator[Contender]:
    """LiteLLM's proxy without a database: one worker, as its makers recommend for production."""
    environment = cache / f"litellm-{LITELLM_VERSION}"
    _install_litellm(environment)
    port, key = free_port(), f"sk-{secrets.token_hex(24)}"
    configuration = directory / "litellm.yaml"
    models = [
        {
            "model_name": model,
            "litellm_params": {
                "model": f"openai/{model}",
                "api_base": base_url,
                "api_key": PROVIDER_KEY,
            },
        }
        for model, base_url in (
            (PLAIN_MODEL, upstream.url + PLAIN),
            (STREAM_MODEL, upstream.url + STREAM),
            *((pace.model, paced_url) for pace in PACES),
        )
    ]
    # JSON is YAML.
    configuration.write_text(
        json.dumps({"model_list": models, "litellm_settings": {"set_verbose": False}}), encoding="utf-8"
    )
    command = [
        *(str(environment / "bin" / "litellm"), "--config", str(configuration)),
        *("--host", HOST, "--port", str(port), "--num_workers", "1"),
    ]
    process_environment = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(directory),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MASTER_KEY": key,
    }
    log = directory / "litellm.log"
    health = f"http://{HOST}:{port}/health/liveliness"
    chat, headers = f"http://{HOST}:{port}/v1{PATH}", {"authorization": f"Bearer {key}"}
    with started(command, log, process_environment, health) as pid:
        yield Contender(
            LITELLM,
            LITELLM_VERSION,
            Endpoint(chat, headers, stream=False),
            Endpoint(chat, headers, stream=True),
            Endpoint(chat, headers, stream=True),
            {"own": cpu.Watched(pid)},
        )


def _install_litellm(environment: Path) -> None:
    done = environment / ".made"
    if done.exists():
        return
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise StackError("uv is not installed: `make bench` brings it")
    shutil.rmtree(environment, ignore_errors=True)
    _run([uv, "venv", "--quiet", "--python", sys.executable, str(environment)])
    python = str(environment / "bin" / "python")
    _run([uv, "pip", "install", "--quiet", "--python", python, f"litellm[proxy]=={LITELLM_VERSION}"])
    done.touch()


@contextlib.contextmanager
def portkey(upstream: Upstream, paced_url: str, directory: Path, cache: Path) -> Iterator[Contender]:
    """Portkey's gateway: one process; where it calls and with which key, each request's headers say."""
    package = cache / f"portkey-{PORTKEY_VERSION}"
    _install_portkey(package)
    port = free_port()
    node = shutil.which("node")
    if node is None:
        raise StackError("Node is not installed")
    program = package / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    command = [
        *(node, "--require", str(Path(__file__).with_name("loopback.cjs"))),
        *(str(program), f"--port={port}", "--headless"),
    ]
    environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(directory), "NODE_ENV": "production"}
    with started(command, directory / "portkey.log", environment, f"http://{HOST}:{port}/") as pid:
        chat = f"http://{HOST}:{port}/v1{PATH}"
        headers = {"authorization": f"Bearer {PROVIDER_KEY}", "x-portkey-provider": "openai"}
        plain, stream, paced = (
            {**headers, "x-portkey-custom-host": host}
            for host in (upstream.url + PLAIN, upstream.url + STREAM, paced_url)
        )
        yield Contender(
            PORTKEY,
            PORTKEY_VERSION,
            Endpoint(chat, plain, stream=False),
            Endpoint(chat, stream, stream=True),
            Endpoint(chat, paced, stream=True),
            {"own": cpu.Watched(pid)},
        )


def _install_portkey(package: Path) -> None:
    done = package / ".made"
    if done.exists():
        return
    npm = shutil.which("npm")
    if npm is None:
        raise StackError("npm is not installed")
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    # Its install scripts patch nothing that is published; none is run.
    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--omit=dev", "--silent"]
    _run([npm, "install", "--prefix", str(package), *options, f"@portkey-ai/gateway@{PORTKEY_VERSION}"])
    done.touch()


def _run(command: list[str]) -> None:
    """Run a step of an installation; StackError with its last words where it fails."""
    try:
        ran = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_INSTALL_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise StackError(f"{Path(command[0]).name} took longer than {_INSTALL_SECONDS} s") from error
    if ran.returncode != 0:
        said = (ran.stderr or ran.stdout).strip()[-600:]
        raise StackError(f"{Path(command[0]).name} failed: {said or f'exit {ran.returncode}'}")
