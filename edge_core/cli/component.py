"""`opendcu component`: build the Greengrass components at the desk; on the box, be one."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edge_core.cli.main import json_option


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def component() -> None:
    """Build the Greengrass components, check their recipes, and, on the box, be one of them."""


@component.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--out",
    default="greengrass-build",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where artifacts, recipes and the tree for local deployments go.",
)
@click.option(
    "--architecture",
    "architectures",
    multiple=True,
    type=click.Choice(["amd64", "aarch64"]),
    help="Of the boxes, as Greengrass names it; again for more. Default: this machine's.",
)
@click.option(
    "--python",
    "pythons",
    multiple=True,
    metavar="3.x",
    help="Python of the boxes; again for more. Default: this one.",
)
@click.option(
    "--wheels",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder of wheels of your own, taken by name and version before those of the lock file.",
)
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The folder of the anomaly model (model.onnx, model.json, model.sig) for io.opendcu.AnomalyModel.",
)
@json_option
def build(
    names: tuple[str, ...],
    out: Path,
    architectures: tuple[str, ...],
    pythons: tuple[str, ...],
    wheels: Path | None,
    model: Path | None,
    as_json: bool,
) -> None:
    """Build components: all of them, or those named (io.opendcu.Gateway, or Gateway).

    Without GDK. OUT/artifacts and OUT/recipes are what `gdk component publish` takes; OUT/local is for a deployment
    without the cloud. An artifact holds everything unpacked for one architecture: nothing is installed on the box.
    """
    from edge_core.greengrass.build import Builder, checkout

    builder = Builder(
        checkout(Path.cwd()), out, architectures=architectures, pythons=pythons, wheels=wheels, model=model
    )  # fmt: skip
    built = builder.build(names)
    if as_json:
        click.echo(json.dumps({"built": [entry.document() for entry in built]}))
        return
    for entry in built:
        click.echo(
            f"{entry.name} {entry.version}: {entry.size >> 10:,} KiB for {', '.join(entry.architectures)}"
        )
    click.echo(f"local deployment: {out}/local/recipes and {out}/local/artifacts")


@component.command()
@click.argument("recipes", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
def lint(recipes: tuple[Path, ...], as_json: bool) -> int:
    """Check recipes against what both nuclei take: classic 2.11 and later, lite 2.4 and later."""
    from edge_core.greengrass.build import checkout
    from edge_core.greengrass.recipes import lint_all

    files = recipes or tuple(sorted((checkout(Path.cwd()) / "recipes").glob("*.yaml")))
    findings = lint_all({str(file): file.read_text(encoding="utf-8") for file in files})
    if as_json:
        document = [
            {"file": f.file, "rule": f.rule, "place": f.place, "message": f.text} for f in findings
        ]
        click.echo(json.dumps({"findings": document}))
    else:
        for finding in findings:
            click.echo(str(finding), err=True)
        click.echo(f"{len(files)} recipes, {len(findings)} findings")
    return 1 if findings else 0


@component.command()
@click.option(
    "--work",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The component's work directory.",
)
def run(work: Path) -> int:
    """Be a component: what the artifact's run.sh starts.

    As `opendcu run`, with the settings from the component configuration, readiness and health told to the nucleus, and
    updates put off while a midnight run is open. Ends with another code than 0 only for a fault of our own, and
    for a nucleus that wants a new process: once a cause, at most twice an hour.
    """
    from edge_core.cli.component_run import main

    return main(work)
