"""The whole gateway as a process of its own, which a test can kill.

Run as `python -m tests.e2e.gateway_process PORT`. Settings come from the environment, as for any server of
the functions. SIGTERM stops it in good order. SIGUSR1 makes it write its tasks into the file of the variable
TASKS, one a line, and SIGUSR2 the bytes that its heaps have in use into that of HEAP.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import socket
import sys
from pathlib import Path

from infra.local.processes import HOST
from infra.local.server import Gateway, load_functions, serve


def _write_tasks(_number: int, _frame: object) -> None:
    gc.collect()
    path = Path(os.environ["TASKS"])
    partial = path.with_suffix(".partial")
    # The handler runs in the main thread, inside the loop.
    names = sorted(str(task.get_coro()) for task in asyncio.all_tasks() if not task.done())
    partial.write_text("\n".join(names), encoding="utf-8")
    partial.replace(path)


class _MallInfo(ctypes.Structure):
    """What mallinfo2(3) of glibc 2.33 and later returns."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def _write_heap(_number: int, _frame: object) -> None:
    """Write how many bytes of the C heap are in use, and how many blocks of Python's for small objects."""
    gc.collect()
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _MallInfo
    told = mallinfo()
    path = Path(os.environ["HEAP"])
    partial = path.with_suffix(".partial")
    partial.write_text(f"{told.uordblks + told.hblkhd} {sys.getallocatedblocks()}", encoding="ascii")
    partial.replace(path)


def main(port: int) -> None:
    if "TASKS" in os.environ:
        signal.signal(signal.SIGUSR1, _write_tasks)
    if "HEAP" in os.environ:
        signal.signal(signal.SIGUSR2, _write_heap)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        # Loaded before it listens: who is let in is answered at once.
        gateway = Gateway(load_functions())
        serve(gateway, listener, ready=lambda: None)


if __name__ == "__main__":
    main(int(sys.argv[1]))
