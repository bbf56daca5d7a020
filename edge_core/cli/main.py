"""The command `opendcu`: a table of commands that are imported only when they are called, and one place for errors.

Exit codes: 0 success, 1 a failure that it names, 2 wrong use or a configuration that cannot start. With `--json` the
error is one JSON document on standard output, else one clear line on standard error. Logs go to standard error.

To add a command: one row in COMMANDS; the module holds a click command under the given name. Its function returns
None or an exit code, takes `--json` through `json_option`, and lets OpenDCUError rise.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from edge_core.errors import ConfigError, MeterError, OpenDCUError, ProtocolError
from edge_core.health import logs

if TYPE_CHECKING:
    from collections.abc import Sequence


class Row(NamedTuple):
    """Where a command is and what its line in `opendcu --help` says."""

    target: str
    help: str
    section: str


COMMANDS: dict[str, Row] = {
    "demo": Row(
        "edge_core.cli.demo:demo",
        "Everything at the desk: simulated fleet, local cloud, gateway.",
        "Try",
    ),
    "simulate": Row("edge_core.cli.simulate:simulate", "The simulated fleet alone.", "Try"),
    "cloud": Row(
        "edge_core.cli.cloud:cloud",
        "The local cloud, the CloudFormation template, rebuilds.",
        "Try",
    ),
    "check": Row(
        "edge_core.cli.check:check", "Every mistake of a configuration at once, offline.", "Set up"
    ),
    "probe": Row(
        "edge_core.cli.probe:probe", "Who is on this line, and which meter model fits.", "Set up"
    ),
    "model": Row("edge_core.cli.model:model", "The meter models: list, show, check.", "Set up"),
    "keys": Row("edge_core.cli.keys:keys", "Seal the keys of the meters.", "Set up"),
    "provision": Row(
        "edge_core.cli.provision:provision", "Claim and renew this gateway's certificate.", "Set up"
    ),
    "component": Row(
        "edge_core.cli.component:component", "Build the Greengrass components.", "Set up"
    ),
    "run": Row("edge_core.cli.run:run", "The gateway, until SIGTERM.", "Run"),
    "top": Row("edge_core.cli.top:top", "Live view of a running gateway.", "Run"),
    "tap": Row("edge_core.cli.tap:tap", "The stream of blocks and alarms, as JSON lines.", "Run"),
    "read": Row("edge_core.cli.read:read", "One meter, one read, now.", "Look"),
    "decode": Row("edge_core.cli.decode:decode", "A frame or APDU as JSON, offline.", "Look"),
    "gaps": Row("edge_core.cli.gaps:gaps", "What is missing, and why: the gap ledger.", "Look"),
    "journal": Row(
        "edge_core.cli.journal:journal", "The journal: status, list, verify, export.", "Look"
    ),
    "anomalies": Row(
        "edge_core.cli.anomalies:anomalies", "What the detector found, and why.", "Look"
    ),
    "diagnose": Row(
        "edge_core.cli.diagnose:diagnose", "One bundle for support, without secrets.", "Look"
    ),
}

json_option = click.option(
    "--json", "as_json", is_flag=True, help="One machine-readable document on standard output."
)
config_option = click.option(
    "-c",
    "--config",
    "config_file",
    type=click.Path(dir_okay=False),
    envvar="OPENDCU_CONFIG",
    default="gateway.toml",
    show_default=True,
    help="The configuration (environment: OPENDCU_CONFIG).",
)


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def __init__(self, *args: Any, table: dict[str, Row], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._table = {name: row for name, row in table.items() if _exists(row.target)}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 click's signature
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        row = self._table.get(cmd_name)
        if row is None:
            return None
        module, _, attribute = row.target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command), row.target
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = click.utils.make_str(args[0]) if args else ""
        if args and name not in self._table and not name.startswith("-"):
            from edge_core.config.tables import did_you_mean

            hint = did_you_mean(name, self._table)
            ctx.fail(f"no such command: {name}" + (f" ({hint})" if hint else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for section in dict.fromkeys(row.section for row in self._table.values()):
            with formatter.section(section):
                formatter.write_dl(
                    [(n, r.help) for n, r in self._table.items() if r.section == section]
                )


def _exists(target: str) -> bool:
    """Is the module there? Looks for the file, imports nothing of it."""
    return importlib.util.find_spec(target.partition(":")[0]) is not None


def _version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"opendcu {version('opendcu')}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: opendcu demo. Logs go to standard error; OPENDCU_LOG=debug,json tells level and format.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and exit.",
)
def opendcu() -> None:
    """Read smart meters, lose nothing, tell the cloud.

    OpenDCU polls DLMS/COSEM and Modbus meters, hears their last gasps, keeps every reading in a journal until the
    cloud has stored it, and knows a cause for every gap.
    """
    try:
        logs.set_up("warning")
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def error_document(error: BaseException) -> dict[str, Any]:
    """The JSON document of an error: class, message, and the fields that its class has."""
    document: dict[str, Any] = {"error": type(error).__name__, "message": logs.redact(str(error))}
    if isinstance(error, MeterError):
        document |= {
            "meter": error.meter,
            "line": error.line,
            "during": error.during,
            "message": logs.redact(error.cause),
            "hint": error.hint,
            "code": error.code,
        }
    elif isinstance(error, ProtocolError):
        document["offset"] = error.offset
    elif mistakes := mistakes_of(error):
        document["mistakes"] = [
            {"file": m.file, "table": m.table, "key": m.key, "problem": m.problem, "hint": m.hint}
            for m in mistakes
        ]
    elif isinstance(error, click.ClickException):
        document = {"error": "UsageError", "message": error.format_message()}
    return document


def mistakes_of(error: BaseException) -> Sequence[ConfigError]:
    """The mistakes that a configuration error holds; () for any other error."""
    if isinstance(error, ConfigError):
        return (error,)
    errors = getattr(
        error, "errors", ()
    )  # ConfigErrors, without importing the configuration for every command
    return errors if isinstance(error, OpenDCUError) and errors else ()


def exit_code_of(error: BaseException) -> int:
    """2 for wrong use and configurations that cannot start, 1 for everything else."""
    return 2 if isinstance(error, click.UsageError | ConfigError) or mistakes_of(error) else 1


def run(args: Sequence[str]) -> int:
    """Run the command line and say the exit code; errors have been printed."""
    as_json = "--json" in args
    try:
        result = opendcu.main(args=list(args), prog_name="opendcu", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("opendcu: interrupted", err=True)
        return 1
    except BrokenPipeError:  # `opendcu tap | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OpenDCUError, click.ClickException) as error:
        if as_json:
            click.echo(json.dumps(error_document(error), ensure_ascii=False))
        elif isinstance(error, click.UsageError):
            error.show()
        else:
            text = error.format_message() if isinstance(error, click.ClickException) else str(error)
            for line in logs.redact(text).splitlines():
                click.echo(f"opendcu: {line}", err=True)
        return exit_code_of(error)
    except Exception as error:  # noqa: BLE001 the edge of the program: a bug keeps its traceback
        if as_json:
            click.echo(
                json.dumps(
                    {"error": "InternalError", "message": f"{type(error).__name__}: {error}"}
                )
            )
        click.echo(logs.redact(traceback.format_exc()), err=True)
        click.echo(
            "opendcu: this is a bug of ours; `opendcu diagnose` makes a bundle for the report",
            err=True,
        )
        return 1
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def main() -> None:
    """Entry point of the installed command."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
