"""Questions to AWS over MQTT: a publish to a reserved topic, answered on `<topic>/accepted` or `<topic>/rejected`.

Fleet provisioning, jobs and shadows all speak so. One question a topic at a time; an answer that nobody waits for is
dropped, since the same topics carry the answers of a connection before.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from edge_core import errors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ANSWER_S = 15.0
ACCEPTED, REJECTED = "/accepted", "/rejected"


class Rejected(errors.UplinkError):
    """AWS said no.

    Attributes:
        code: its error code.
    """

    def __init__(self, topic: str, code: str, message: str) -> None:
        super().__init__(f"{topic}: {code}: {message}")
        self.code = code


class Requests:
    """Questions through one connection.

    Args:
        publish: publishes and waits for the PUBACK.
    """

    def __init__(self, publish: Callable[[str, bytes], Awaitable[None]]) -> None:
        self._publish = publish
        self._waiting: dict[str, asyncio.Future[tuple[bool, bytes]]] = {}

    def feed(self, topic: str, payload: bytes) -> bool:
        """A message arrived; True if it is the answer that somebody waits for. On the loop."""
        for end in (ACCEPTED, REJECTED):
            waiting = self._waiting.get(topic.removesuffix(end)) if topic.endswith(end) else None
            if waiting is not None and not waiting.done():
                waiting.set_result((end == ACCEPTED, payload))
                return True
        return False

    async def ask(self, topic: str, body: Any, limit_s: float = ANSWER_S) -> dict[str, Any]:
        """The answer's document.

        Raises:
            Rejected: AWS refuses.
            UplinkError: no connection, no answer in time, or one that is no document.
        """
        if topic in self._waiting:
            raise errors.UplinkError(f"{topic}: a question is under way")
        answer = self._waiting[topic] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(limit_s):
                await self._publish(topic, msgspec.json.encode(body))
                accepted, payload = await answer
        except TimeoutError:
            raise errors.UplinkError(
                f"{topic}: no answer within {limit_s:.0f} s; IoT Core says nothing where a policy does not allow a topic"
            ) from None
        finally:
            del self._waiting[topic]
        try:
            found = msgspec.json.decode(payload or b"{}", type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise errors.UplinkError(f"{topic}: no document came: {error}") from error
        if not accepted:
            code = found.get("errorCode", found.get("code", ""))
            raise Rejected(
                topic, str(code), str(found.get("errorMessage", found.get("message", "")))
            )
        return found
