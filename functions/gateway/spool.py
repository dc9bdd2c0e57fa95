"""Settlements that could not reach the database: kept on disk, and replayed when it is back.

A settlement is idempotent, so that keeping one too often costs nothing and losing one costs money: it is on
the disk before the client has its answer. On Lambda, whose disk does not last, a queue takes this place.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any, Protocol

from gateway.database.client import DatabaseAwayError, DatabaseError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from gateway.database.rpc import Database
    from gateway.observability import Logger

_SUFFIX = ".settlement.json"


class Spool(Protocol):
    """Where settlements wait for the database."""

    async def keep(self, settlement: Mapping[str, Any]) -> None:
        """Return when the settlement is safe. Raises OSError."""

    async def replay(self, database: Database) -> int:
        """Settle what is kept here, and return how many were."""


class FileSpool:
    """A directory of settlements, one file each. Several processes may share it."""

    def __init__(self, directory: Path, logger: Logger) -> None:
        self._directory = directory
        self._logger = logger

    async def keep(self, settlement: Mapping[str, Any]) -> None:
        """Write a settlement to the disk, whole or not at all. Raises OSError."""
        await asyncio.to_thread(self._write, settlement)

    async def replay(self, database: Database) -> int:
        """Settle what is kept, oldest first, and return how many were. Stops when the database is away.

        One that the database refuses stays where it is, for a person to look at, and is logged each time.
        """
        replayed = 0
        for path in await asyncio.to_thread(self._kept):
            try:
                settlement = json.loads(await asyncio.to_thread(path.read_bytes))
            except FileNotFoundError:
                continue  # another process was faster
            except (OSError, ValueError):
                self._logger.exception("A kept settlement can't be read.", extra={"file": path.name})
                continue
            try:
                settled = await database.settle_request(settlement)
            except DatabaseAwayError:
                break
            except DatabaseError as error:
                self._report("A kept settlement was refused.", settlement, error)
                continue
            if settled is None:
                self._report("A kept settlement is of an unknown request.", settlement)
                continue
            await asyncio.to_thread(path.unlink, missing_ok=True)
            replayed += 1
        return replayed

    def _report(self, message: str, settlement: Mapping[str, Any], error: Exception | None = None) -> None:
        self._logger.error(message, extra={"settlement": settlement}, exc_info=error)

    def _kept(self) -> list[Path]:
        # Request ids sort by time.
        return sorted(self._directory.glob(f"*{_SUFFIX}"))

    def _write(self, settlement: Mapping[str, Any]) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._directory / f"{settlement['request_id']}{_SUFFIX}"
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as file:
            file.write(json.dumps(settlement).encode())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        # The new name is on the disk when its directory is.
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


class QueueSpool:
    """An SQS queue of settlements. Its messages come to the maintenance function, which replays them."""

    def __init__(self, queue_url: str) -> None:
        self._queue_url = queue_url

    async def keep(self, settlement: Mapping[str, Any]) -> None:
        """Send a settlement to the queue. Raises OSError."""
        await asyncio.to_thread(self._send, json.dumps(settlement))

    async def replay(self, database: Database) -> int:  # noqa: ARG002
        """Settle nothing: the queue itself brings what it holds."""
        return 0

    def _send(self, settlement: str) -> None:
        # Only here, where a settlement has failed: boto3 is Lambda's own, and takes half a second to import.
        import boto3  # noqa: PLC0415
        from botocore.config import Config  # noqa: PLC0415
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        patience = Config(
            connect_timeout=2, read_timeout=3, retries={"total_max_attempts": 2, "mode": "standard"}
        )
        try:
            client = boto3.session.Session().client("sqs", config=patience)
            try:
                client.send_message(QueueUrl=self._queue_url, MessageBody=settlement)
            finally:
                client.close()
        except (BotoCoreError, ClientError) as error:
            raise OSError(f"the queue took no settlement: {error}") from error


async def replay_messages(
    messages: Sequence[Mapping[str, Any]], database: Database, logger: Logger
) -> list[str]:
    """Settle a batch of the queue's messages, and return the ids of those that have to stay in it.

    One that the database refuses stays too, so that the queue hands it to a person at last: to its
    dead-letter queue. Once the database is away, the rest of the batch stays untried.
    """
    left: list[str] = []
    away = False
    for message in messages:
        try:
            if not away:
                settlement = json.loads(message["body"])
                if await database.settle_request(settlement) is not None:
                    continue
                logger.error("A kept settlement is of an unknown request.", extra={"settlement": settlement})
        except DatabaseAwayError:
            away = True
        except (DatabaseError, ValueError):
            logger.exception("A kept settlement was refused.", extra={"settlement": message["body"]})
        left.append(message["messageId"])
    return left
