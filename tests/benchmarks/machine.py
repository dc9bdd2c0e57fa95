"""What the figures depend on beside the code: the machine and the versions of what runs on it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from infra.local.postgrest import binary as postgrest_binary


def describe() -> dict[str, Any]:
    """Return the machine's name, cores, kernel and its load just now."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions(*, nginx: str, wrk: str) -> dict[str, str]:
    """Return the versions of what all share."""
    node = shutil.which("node")
    return {
        "Python": sys.version.split()[0],
        "PostgREST": _said(str(postgrest_binary()), "--version").removeprefix("PostgREST "),
        "nginx": _said(nginx, "-v").rpartition("/")[2],
        "wrk": _said(wrk, "-v").partition(" [")[0].removeprefix("wrk "),
        "Node": _said(node, "--version").removeprefix("v") if node else "none",
    }


def _said(*command: str) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    # nginx says it on stderr, wrk beside its usage and with an exit status of its own.
    lines = (ran.stdout + ran.stderr).strip().splitlines()
    return lines[0].strip() if lines else "unknown"
