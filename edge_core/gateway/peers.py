"""The other processes of the same gateway, as the uplink's process sees them: asked through their control sockets.

A process that does not answer within the time is left out; what was last heard of the rest is never kept.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from edge_core.errors import GatewayAbsent, NotHere, OpenDCUError
from edge_core.transports.control import ask

if TYPE_CHECKING:
    from pathlib import Path

    from edge_core.journal.datadir import DataDirectory
    from edge_core.transports.control import Request

log = logging.getLogger(__name__)

ANSWER_S = 5.0


class Peers:
    """Asks all others.

    Args:
        own: our own control socket.
    """

    def __init__(self, directory: DataDirectory, own: Path) -> None:
        self._directory, self._own = directory, own

    async def ask(self, request: Request, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """What each of the others answers, by the name of its socket."""
        paths = [p for p in self._directory.controls() if p != self._own]
        answers = await asyncio.gather(
            *(asyncio.to_thread(_ask, path, request, timeout_s) for path in paths)
        )
        return {
            path.stem: answer
            for path, answer in zip(paths, answers, strict=True)
            if answer is not None
        }

    async def ask_one(self, name: str, request: Request, timeout_s: float = ANSWER_S) -> Any:
        """What the process of this socket answers; None when it does not."""
        path = self._directory.path / f"{name}.sock"
        return await asyncio.to_thread(_ask, path, request, timeout_s)


def _ask(path: Path, request: Request, timeout_s: float) -> Any:
    try:
        return ask(path, request, timeout_s)
    except (GatewayAbsent, NotHere):
        return None
    except OpenDCUError as error:
        log.warning("%s does not answer %s: %s", path.name, request["do"], error)
        return None
