"""`opendcu run`: the gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command()
@click.option(
    "-c",
    "--config",
    "file",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The gateway.toml.",
)
@click.option("--roles", default="", help="Overrides [gateway] roles: dlms,push,uplink ...")
def run(file: Path, roles: str) -> None:
    """Run the gateway until SIGTERM or SIGINT.

    SIGTERM is safe within 4 s at any moment: what is not yet durable is still in the meters. SIGHUP reads the
    configuration again; one with mistakes is refused and the old one stays in use. Broker, meters, disk and
    clock are never a reason to end. Exit codes: 0 after a signal, 1 for a fault of our own, 2 for a configuration that
    cannot start.
    """
    import asyncio
    import signal
    import sys

    from edge_core.clock import SystemClock
    from edge_core.config import remote
    from edge_core.config.keys import KeyRing
    from edge_core.config.schema import ROLES
    from edge_core.config.tables import ConfigErrors
    from edge_core.gateway import Gateway
    from edge_core.health import events, logs

    names = tuple(name for name in roles.replace(",", " ").split() if name)
    for name in names:
        if name not in ROLES:
            raise click.BadParameter(f"{name!r} is no role; known: {', '.join(ROLES)}")
    config = remote.load_kept(file)
    logs.set_up(config.logs.level)
    for warning in config.warnings:
        events.config_unknown_key(warning)

    async def main() -> None:
        """Gateways one after another: SIGHUP ends the present one for the next configuration, other signals end all."""
        loop = asyncio.get_running_loop()
        clock = SystemClock.from_environment()
        current, following = config, None

        def make() -> Gateway:
            gateway = Gateway(current, clock, roles=names)
            gateway.configure, gateway.configured = configure, reload
            return gateway

        def end() -> None:
            nonlocal following
            following = None
            gateway.stop()

        def reload() -> None:
            """The old configuration stays in use when the new one has mistakes."""
            nonlocal following
            try:
                fresh = remote.load_kept(file)
                KeyRing.of(fresh)
            except ConfigErrors as errors:
                events.reload_refused([str(error) for error in errors.errors])
                return
            changed = [
                name
                for name in fresh.__struct_fields__
                if getattr(fresh, name) != getattr(current, name)
            ]
            events.reloaded(changed)
            following = fresh
            gateway.stop(another_follows=True)

        def configure(wanted: dict[str, Any]) -> None:
            """What the cloud sets: checked with the file, then kept; `reload` uses it."""
            KeyRing.of(remote.load_with(file, wanted))
            remote.keep(current, wanted)

        gateway = make()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end)
        loop.add_signal_handler(signal.SIGHUP, reload)
        while True:
            await gateway.run()
            if following is None:
                return
            current, following = following, None
            gateway = make()

    if sys.platform == "linux":
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    else:
        asyncio.run(main())
