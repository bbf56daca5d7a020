"""A directory instead of a cloud: one JSON document a message, for boxes that are collected by hand and for tests.

A message of topic `dcu/dcu-0001/reads/interval` becomes `<directory>/dcu/dcu-0001/reads/interval/<epoch>-<n>.json`;
health overwrites `latest.json`. It is confirmed when the renamed file and its folder are fsynced: nobody sends acks.
"""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_core import errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from edge_core.uplink.clients import Downward

BAD_REQUEST = 0x99  # payload format invalid, as MQTT 5 has it


class _Number(msgspec.Struct):
    epoch: int
    n: int


class FileClient:
    """See `Client`."""

    confirms = True
    max_payload: int | None = None

    def __init__(self, directory: str) -> None:
        self._root = Path(directory.removeprefix("file://"))
        self._closed = asyncio.Event()
        self._one_at_a_time = threading.Lock()
        self._made: set[Path] = set()
        self.receive_maximum = 20

    async def connect(self) -> None:
        try:
            await asyncio.to_thread(self._root.mkdir, parents=True, exist_ok=True)
        except OSError as error:
            raise errors.BrokerUnreachable(f"{self._root}: {error}") from error
        self._closed.clear()

    async def publish(self, topic: str, payload: bytes) -> None:
        try:
            number = msgspec.json.decode(payload, type=_Number)
        except msgspec.DecodeError as error:
            raise errors.PublishRefused(f"no message: {error}", BAD_REQUEST) from error
        name = f"{number.epoch}-{number.n:012d}.json" if number.n else "latest.json"
        try:
            await asyncio.to_thread(self._write, topic, name, payload)
        except OSError as error:
            raise errors.BrokerUnreachable(f"{self._root}: {error}") from error

    def _write(self, topic: str, name: str, payload: bytes) -> None:
        parts = topic.split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise errors.PublishRefused(f"topic {topic!r} is no path", BAD_REQUEST)
        folder = self._root.joinpath(*parts)
        with self._one_at_a_time:
            if folder not in self._made:
                folder.mkdir(parents=True, exist_ok=True)
                for above in (folder, *folder.parents):
                    _sync(above.parent)
                    if above == self._root:
                        break
                self._made.add(folder)
            temporary = folder / f".{name}.part"
            with temporary.open("wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(folder / name)
            _sync(folder)

    async def messages(self) -> AsyncIterator[Downward]:
        await self._closed.wait()
        nothing: tuple[Downward, ...] = ()  # nobody speaks from a directory
        for message in nothing:
            yield message

    async def close(self) -> None:
        self._closed.set()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
