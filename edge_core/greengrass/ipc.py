"""One connection to the nucleus, through awsiotsdk; every call has a limit of our own.

The SDK's client never reconnects and its synchronous calls wait for ever (190 s were seen), so each connection is a
new client on one shared event loop thread, only the asynchronous calls are used, and the first failure of a
connection ends it for everybody. What must be known of the two nuclei (facts/greengrass.md):

- One client per process is the advice, so `shared()` serves the whole process.
- Lite closes the socket on a refused token and after its restart refuses every old token; it then takes the component's
  name instead, and looks at the caller's systemd unit. We try the token first, the name second.
- A frame above 10,000 octets closes lite's connection for good: callers keep below MOST_PAYLOAD.
- Callbacks come from awscrt's thread and go to our loop at once; a wait in them would stop every call.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from awscrt import exceptions, io
from awsiot import eventstreamrpc
from awsiot.greengrasscoreipc import model
from awsiot.greengrasscoreipc.client import GreengrassCoreIPCClient
from awsiot.greengrasscoreipc.clientv2 import GreengrassCoreIPCClientV2

from edge_core import errors
from edge_core.greengrass.restarts import Restarts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future

log = logging.getLogger(__name__)

T = TypeVar("T")

SOCKET = "AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT"
TOKEN = "SVCUID"  # noqa: S105 the name of a variable
COMPONENT = "OPENDCU_COMPONENT"  # set by launch.py

CONNECT_S = 10.0
CALL_S = 12.0  # a hung iotcored lets a publish fail after 10 s
CLOSE_S = 2.0
UNREACHABLE_S = 600.0
DEFER_S = 5.0
MOST_PAYLOAD = 7_000  # octets of a publish; with base64, topic and headers below lite's 10,000

NotTaken = model.ServiceError
"""The nucleus does not do it now (offline, full), or does not know the operation: the two cannot be told apart."""
NotAllowed = model.UnauthorizedError


class Refused(errors.BrokerUnreachable):
    """The nucleus runs and accepts neither our token nor our name."""


class Ended(errors.BrokerUnreachable):
    """The connection is over."""


class Ipc:
    """The nucleus as seen from one process; connects on `open`, and again after the connection ended.

    Args:
        socket: path of the nucleus' socket.
        token: what the nucleus gave us for this run.
        component: our name, for a nucleus that forgot the token; "" = do not try.
        restarts: asked to end the process when the nucleus refuses us, or is not to be reached for UNREACHABLE_S.

    Attributes:
        capabilities: what was tried and worked (True) or did not (False), by the names of this file.
        connects: connections made so far.
        pressed: seconds of the loop's clock since when the nucleus takes no messages; None while it does.
    """

    def __init__(self, socket: str, token: str, component: str = "", *, restarts: Restarts) -> None:
        self._socket, self._token, self._component = socket, token, component
        self.restarts = restarts
        self._failing_since: float | None = None
        self._bootstrap: Any = None
        self._lock = asyncio.Lock()
        self._link: Link | None = None
        self.capabilities: dict[str, bool] = {}
        self.connects = 0
        self.pressed: float | None = None

    async def open(self) -> Link:
        """The connection; a new one if the last one ended.

        Raises:
            Refused: neither token nor name is accepted.
            BrokerUnreachable: nobody listens, or nothing answers within CONNECT_S.
        """
        async with self._lock:
            if self._link is not None and not self._link.over:
                return self._link
            await self._leave()
            try:
                self._link = await self._any_way()
            except Refused as error:
                self.restarts.ask("refused", str(error))
                raise
            except errors.BrokerUnreachable as error:
                now = asyncio.get_running_loop().time()
                self._failing_since = since = self._failing_since or now
                if now - since > UNREACHABLE_S:
                    self.restarts.ask("unreachable", str(error))
                raise
            self.connects += 1
            self._failing_since = None
            self.restarts.healed()
            return self._link

    async def _any_way(self) -> Link:
        """A connection by the token, or else by our name."""
        ways = [{"authToken": self._token}] if self._token else []
        if self._component:
            ways.append({"componentName": self._component})
        refusal = Refused("the nucleus gave us no token")
        for way in ways:
            try:
                return await self._connect(way)
            except Refused as error:
                refusal = error
        raise refusal

    async def _connect(self, credentials: dict[str, str]) -> Link:
        if self._bootstrap is None:
            group = io.EventLoopGroup(1)
            self._bootstrap = io.ClientBootstrap(group, io.DefaultHostResolver(group))
        options = io.SocketOptions()
        options.domain = io.SocketDomain.Local
        options.connect_timeout_ms = int(CONNECT_S * 1_000)
        payload = json.dumps(credentials).encode()
        connection = eventstreamrpc.Connection(
            host_name=self._socket,
            port=0,
            bootstrap=self._bootstrap,
            socket_options=options,
            connect_message_amender=lambda: eventstreamrpc.MessageAmendment(payload=payload),
        )
        link = Link(connection)
        await link.connect(next(iter(credentials)))
        return link

    async def drop(self) -> None:
        """End the connection; the next `open` makes another."""
        async with self._lock:
            await self._leave()

    async def _leave(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.close("")


class Link:
    """One connection, from its handshake to its first failure.

    Attributes:
        over: nothing passes any more.
        reason: why, in words; "" when we closed it.
        ended: done when it is over.
    """

    def __init__(self, connection: eventstreamrpc.Connection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        # without an executor callbacks run in awscrt's thread; ours only hand over to the loop
        self._client = GreengrassCoreIPCClientV2(GreengrassCoreIPCClient(connection), executor=None)
        self._closed: asyncio.Future[Any] | None = None
        self.ended: asyncio.Event = asyncio.Event()
        self.reason = ""

    @property
    def over(self) -> bool:
        """Is it?"""
        return self.ended.is_set()

    async def connect(self, what: str) -> None:
        """Connect and shake hands.

        Args:
            what: the credentials, named in errors.
        """
        link = self

        class Lifecycle(eventstreamrpc.LifecycleHandler):  # type: ignore[misc]
            def on_disconnect(self, reason: Exception | None) -> None:
                link.later(link.end, f"the nucleus hung up: {named(reason)}" if reason else "")

            def on_error(self, error: Exception) -> bool:
                link.later(link.end, f"the nucleus reports an error: {named(error)}")
                return True

        try:
            async with asyncio.timeout(CONNECT_S):
                await asyncio.wrap_future(self._connection.connect(Lifecycle()))
        except TimeoutError:
            await self.close("timed out")
            raise errors.BrokerUnreachable(
                f"the nucleus does not answer within {CONNECT_S:.0f} s"
            ) from None
        except (RuntimeError, exceptions.AwsCrtError) as error:
            self.end(named(error))
            # lite closes the socket on what it does not accept, classic says no
            if (
                isinstance(error, eventstreamrpc.AccessDeniedError)
                or getattr(error, "name", "") == "AWS_IO_SOCKET_CLOSED"
            ):
                raise Refused(f"the nucleus does not accept our {what}") from error
            raise errors.BrokerUnreachable(f"no nucleus: {named(error)}") from error

    def later(self, work: Callable[..., object], *args: Any) -> None:
        """Do it on our loop; for awscrt's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is gone
            self._loop.call_soon_threadsafe(work, *args)

    def end(self, reason: str) -> None:
        """It is over; everybody who waits for `ended` sees it. On the loop."""
        if not self.over:
            self.reason = reason
            self.ended.set()
            self._connection.close()

    async def close(self, reason: str) -> None:
        """End it and wait a moment until awscrt let the socket go."""
        self.end(reason)
        closed = asyncio.wrap_future(self._connection.close())
        await asyncio.wait([closed], timeout=CLOSE_S)
        if closed.done() and not closed.cancelled():
            closed.exception()  # why it ended stands in `reason`

    async def call(
        self, start: Callable[[GreengrassCoreIPCClientV2], Future[T]], limit_s: float = CALL_S
    ) -> T:
        """One request and its answer.

        Args:
            start: begins one of the client's `..._async` calls.

        Raises:
            Ended: the connection is over, or now is since nothing answered within the limit.
            NotTaken, NotAllowed, EventStreamOperationError: what the nucleus answered.
        """
        if self.over:
            raise Ended(self.reason or "closed")
        try:
            async with asyncio.timeout(limit_s):
                return await asyncio.wrap_future(start(self._client))
        except TimeoutError:
            self.end(f"the nucleus does not answer within {limit_s:.0f} s")
            raise Ended(self.reason) from None
        except (eventstreamrpc.EventStreamOperationError, eventstreamrpc.SerializeError):
            raise
        except (RuntimeError, exceptions.AwsCrtError) as error:
            self.end(f"the connection to the nucleus broke: {named(error)}")
            raise Ended(self.reason) from error

    def defer(self, deployment: str, recheck_ms: int, why: str) -> None:
        """Answer an update notice, from any thread but awscrt's; waits DEFER_S at most.

        Raises:
            Exception: whatever went wrong.
        """
        self._client.defer_component_update_async(
            deployment_id=deployment, message=why, recheck_after_ms=recheck_ms
        ).result(DEFER_S)

    async def subscribe(
        self,
        start: Callable[..., tuple[Future[Any], Any]],
        on_event: Callable[[Any], object],
        *,
        ends_link: bool = False,
        direct: bool = False,
    ) -> None:
        """A stream of events, each handed to `on_event` on the loop.

        Args:
            start: takes the client and the callbacks as keywords, and begins a `subscribe_to_..._async` call.
            ends_link: without this stream the connection is of no use.
            direct: `on_event` is called in awscrt's thread, even if the loop stands still; it must not wait.

        Raises:
            as `call`.
        """

        def closed() -> None:
            if (
                ends_link
            ):  # with the connection all streams close, and its own reason comes a moment later
                self.later(
                    self._loop.call_later, 0.2, self.end, "the nucleus ended the subscription"
                )

        def failed(error: Exception) -> bool:
            log.warning("ipc: a subscription failed: %s", named(error))
            return True

        await self.call(
            lambda client: start(
                client,
                on_stream_event=on_event if direct else lambda event: self.later(on_event, event),
                on_stream_error=failed,
                on_stream_closed=closed,
            )[0]
        )


def named(error: BaseException | None) -> str:
    """An error of awscrt or the SDK in a few words."""
    if error is None:
        return "closed"
    text = getattr(error, "name", "") or getattr(error, "message", "") or str(error)
    return f"{type(error).__name__} {text}".strip()


_shared: Ipc | None = None


def available(environment: Mapping[str, str] = os.environ) -> bool:
    """Do we run under a nucleus?"""
    return bool(environment.get(SOCKET))


def shared(environment: Mapping[str, str] = os.environ) -> Ipc:
    """The process' one way to the nucleus.

    Raises:
        ValueError: no nucleus started us.
    """
    global _shared
    if _shared is None:
        if not available(environment):
            raise ValueError(
                f"kind greengrass works only under a nucleus: {SOCKET} is not set; deploy the component"
            )
        _shared = Ipc(
            environment[SOCKET],
            environment.get(TOKEN, ""),
            environment.get(COMPONENT, ""),
            restarts=Restarts(Path("restarts.json")),  # we are started in our work directory
        )
    return _shared


def forget() -> None:
    """Forget the shared connection: the next event loop makes its own."""
    global _shared
    _shared = None
