"""The program that MiniStack runs in: every TCP listener of it binds 127.0.0.1, its MQTT one too, which asks for 0.0.0.0.

Run as a script by `simulators.cloud.ministack`, never imported; knows nothing of MiniStack but its name.
"""

import asyncio.base_events
import runpy
from typing import Any

_listen: Any = asyncio.base_events.BaseEventLoop.create_server


async def _listen_here(
    loop: Any, factory: Any, host: Any = None, port: Any = None, **more: Any
) -> Any:
    everywhere = port is not None and host in (None, "", "0.0.0.0", "::")
    return await _listen(loop, factory, "127.0.0.1" if everywhere else host, port, **more)


if __name__ == "__main__":
    asyncio.base_events.BaseEventLoop.create_server = _listen_here  # type: ignore[method-assign,assignment]
    runpy.run_module("ministack", run_name="__main__", alter_sys=True)
