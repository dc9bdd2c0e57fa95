"""Pass connections on: `relay.py FROM=TO …`, each a Unix socket's path or HOST:PORT. Standard library alone.

The stack listens on 127.0.0.1, where no container reaches it, and is to listen nowhere else. So one relay
passes Unix sockets in a shared folder on to it; another, in a container, passes ports on to those sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from functools import partial

_CHUNK_BYTES = 65536


async def _open(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if "/" in address:
        return await asyncio.open_unix_connection(address)
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def _listen(address: str, target: str) -> asyncio.Server:
    if "/" in address:
        return await asyncio.start_unix_server(partial(_pass_on, target), address)
    host, _, port = address.rpartition(":")
    return await asyncio.start_server(partial(_pass_on, target), host, int(port))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


async def _pass_on(target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        onward_reader, onward_writer = await _open(target)
    except OSError:
        writer.close()
        return
    try:
        await asyncio.gather(_pump(reader, onward_writer), _pump(onward_reader, writer))
    finally:
        writer.close()
        onward_writer.close()


async def relay(routes: list[tuple[str, str]]) -> None:
    """Serve until cancelled; say on standard output when all listen."""
    async with contextlib.AsyncExitStack() as servers:
        for address, target in routes:
            await servers.enter_async_context(await _listen(address, target))
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(relay([(each.split("=")[0], each.split("=")[1]) for each in sys.argv[1:]]))
