"""`opendcu simulate`: the simulated fleet alone, one address or port a meter, obeying orders on standard input.

Prints one JSON line when every meter listens, then answers each order (a JSON line, see simulators.fleet) with a JSON
line. Ends on SIGTERM, SIGINT, the order `quit`, or the end of the orders when they come through a pipe.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_core.cli.main import json_option
from edge_core.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from simulators.fleet import Fleet

MAX_ORDER = 1 << 20


@click.command()
@click.option(
    "-c",
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The fleet file; without it a small fleet of --meters.",
)
@click.option(
    "--meters",
    type=click.IntRange(1, 20_000),
    default=10,
    show_default=True,
    help="Without a file.",
)
@click.option(
    "--history", default=None, help="How much the meters hold at the start: 36h, 2d. [default: 2d]"
)
@click.option(
    "--seed", type=int, default=None, help="Another seed is another town, with other keys."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("fleet"),
    show_default=True,
    help="Folder for meters.csv, keys.toml, lines.toml, and state/ with the counters and violations.",
)
@json_option
def simulate(
    config: Path | None,
    meters: int,
    history: str | None,
    seed: int | None,
    out: Path,
    *,
    as_json: bool,  # noqa: ARG001 JSON lines anyway
) -> None:
    """Run a fleet of simulated DLMS and Modbus meters."""
    import msgspec

    from simulators.fleet import Fleet
    from simulators.spec import DlmsGroup, FleetSpec, load_spec, span_s

    spec = load_spec(config) if config else FleetSpec(dlms=(DlmsGroup(count=meters),))
    if seed is not None:
        spec = msgspec.structs.replace(spec, seed=seed)
    if history is not None:
        try:
            spec = msgspec.structs.replace(spec, history_s=span_s(history))
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--history") from None
    _loop_run(_serve(Fleet(spec, out / "state", SystemClock.from_environment()), out))


def _loop_run(main: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:  # Windows
        asyncio.run(main)
    else:
        uvloop.run(main)


async def _serve(fleet: Fleet, out: Path) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    try:
        await fleet.open()
        fleet.write_files(out)
        click.echo(json.dumps(fleet.ready(out)))
        orders = loop.create_task(_obey(fleet, stop), name="orders")
        await stop.wait()
        orders.cancel()
        await asyncio.gather(orders, return_exceptions=True)
    finally:
        await fleet.close()


async def _obey(fleet: Fleet, stop: asyncio.Event) -> None:
    import msgspec

    mode = os.fstat(sys.stdin.fileno()).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(sys.stdin.fileno())):
        return  # /dev/null or a file: there are no orders, only signals
    reader = asyncio.StreamReader(limit=MAX_ORDER)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        try:
            order = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            click.echo(json.dumps({"do": None, "error": str(error)}))
            continue
        click.echo(json.dumps(await fleet.obey(order)))
        if order.get("do") == "quit":
            break
    stop.set()
