"""The command line skeleton: help, exit codes, errors as one line or one document, and `check`."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from edge_core.cli import main
from edge_core.cli.main import COMMANDS, error_document, exit_code_of, opendcu, run
from edge_core.config.tables import ConfigErrors
from edge_core.errors import ConfigError, DiskFull, LineSilent, MalformedApdu

GUEK = "000102030405060708090a0b0c0d0e0f"


def configuration(folder: Path, extra: str = "") -> Path:
    path = folder / "gateway.toml"
    path.write_text('[gateway]\nid = "dcu-0001"\nroles = ["dlms", "uplink"]\n' + extra)
    return path


def listed() -> list[str]:
    return list(opendcu.list_commands(click.Context(opendcu)))


@pytest.mark.parametrize("name", listed())
def test_every_command_that_is_listed_loads_and_teaches(name: str) -> None:
    command = opendcu.get_command(click.Context(opendcu), name)
    assert command is not None
    assert command.name == name
    assert command.help, f"opendcu {name} --help says nothing"
    row = COMMANDS[name]
    assert row.help.endswith(".")
    assert CliRunner().invoke(command, ["--help"]).exit_code == 0


def test_commands_whose_module_is_missing_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        "nope": main.Row("edge_core.cli.nope:nope", "Nothing.", "Try"),
        "check": COMMANDS["check"],
    }
    group = main.LazyGroup("x", table=table)
    assert group.list_commands(click.Context(group)) == ["check"]


def test_help_shows_sections_and_wrong_names_get_a_hint(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    out = capfd.readouterr().out
    assert "Set up:" in out
    assert re.search(r"check +Every mistake", out)
    assert run(["chek"]) == 2
    assert 'did you mean "check"?' in capfd.readouterr().err
    assert run(["check", "--nonsense"]) == 2
    assert run([]) == 2, "without a command it shows the help, and that is no success"


def test_the_installed_command_answers() -> None:
    program = Path(sys.executable).with_name("opendcu")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert re.fullmatch(r"opendcu \d+\.\d+\.\d+\S*\n", done.stdout)


# Errors ---------------------------------------------------------------------------------------------------------------

FAILURES = {
    "silent": LineSilent("GP1", "feeder-1", "AARQ", "no answer", "Check the line."),
    "full": DiskFull("the disk is full"),
    "apdu": MalformedApdu(f"short after {GUEK}", 7),
    "config": ConfigErrors(
        [
            ConfigError("g.toml", "uplink", "kind", "is wrong", "do right"),
            ConfigError("g.toml", "x", "", "y"),
        ]
    ),
    "usage": click.UsageError("no such meter"),
    "bug": ZeroDivisionError("division"),
    "abort": click.exceptions.Abort(),
}


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command(name="fail")
    @click.argument("what")
    @main.json_option
    def fail(what: str, *, as_json: bool) -> int:
        if what == "seven":
            return 7
        raise FAILURES[what]

    monkeypatch.setattr(opendcu, "get_command", lambda _ctx, name: fail if name == "fail" else None)
    monkeypatch.setitem(opendcu._table, "fail", COMMANDS["check"])


@pytest.mark.usefixtures("failing")
@pytest.mark.parametrize(
    ("what", "code", "says"),
    [
        ("silent", 1, "opendcu: meter GP1 (feeder-1): AARQ: no answer. Check the line.\n"),
        ("full", 1, "opendcu: the disk is full\n"),
        ("apdu", 1, "opendcu: short after <32 hex digits>\n"),
        (
            "config",
            2,
            "opendcu: g.toml: uplink: kind: is wrong (do right)\nopendcu: g.toml: x: y\n",
        ),
        ("usage", 2, "no such meter"),
        ("abort", 1, "interrupted"),
        ("bug", 1, "ZeroDivisionError: division"),
        ("seven", 7, ""),
    ],
)
def test_exit_codes_and_lines(
    what: str, code: int, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["fail", what]) == code
    captured = capfd.readouterr()
    assert captured.out == ""
    assert says in captured.err


@pytest.mark.usefixtures("failing")
def test_errors_as_documents(capfd: pytest.CaptureFixture[str]) -> None:
    documents = {}
    for what in ("silent", "apdu", "config", "usage", "bug", "full"):
        assert run(["fail", what, "--json"]) == (2 if what in ("config", "usage") else 1)
        documents[what] = json.loads(capfd.readouterr().out)
    assert documents["silent"] == {
        "error": "LineSilent",
        "meter": "GP1",
        "line": "feeder-1",
        "during": "AARQ",
        "message": "no answer",
        "hint": "Check the line.",
        "code": None,
    }
    assert documents["apdu"] == {
        "error": "MalformedApdu",
        "message": "short after <32 hex digits>",
        "offset": 7,
    }
    assert [m["key"] for m in documents["config"]["mistakes"]] == ["kind", ""]
    assert documents["usage"] == {"error": "UsageError", "message": "no such meter"}
    assert documents["bug"]["error"] == "InternalError"
    assert documents["full"] == {"error": "DiskFull", "message": "the disk is full"}
    assert exit_code_of(FAILURES["config"]) == 2
    assert error_document(ConfigError("f", "t", "k", "p"))["mistakes"][0]["problem"] == "p"


def test_a_wrong_log_setting_is_wrong_use(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENDCU_LOG", "loud")
    assert run(["check", "x"]) == 2
    assert "OPENDCU_LOG" in capfd.readouterr().err


# check ----------------------------------------------------------------------------------------------------------------


def test_check_shows_what_it_understood(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = configuration(tmp_path)
    assert run(["check", str(path)]) == 0
    out = capfd.readouterr().out
    assert "no mistakes" in out
    assert "4f4443d980042a23" in out, "the system title: ODC + SHA-256(dcu-0001)"
    assert run(["check", str(path), "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["ok"] is True
    assert document["system_title"] == "4f4443d980042a23"
    assert document["roles"] == ["dlms", "uplink"]


def test_check_shows_every_mistake(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = configuration(tmp_path, 'colour = 1\n[uplink]\nkind = "mqt"\n[logs]\nlevel = 5\n')
    assert run(["check", str(path)]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("gateway.toml: ") == 4, "three mistakes and how many there are"
    assert 'did you mean "mqtt"?' in captured.err
    assert run(["check", str(path), "--json"]) == 2
    document = json.loads(capfd.readouterr().out)
    assert document["ok"] is False
    assert {(m["table"], m["key"]) for m in document["mistakes"]} == {
        ("gateway", "colour"),
        ("uplink", "kind"),
        ("logs", "level"),
    }


def test_check_looks_at_the_keys(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keys.toml").write_text(f'[GP1]\nguek = "{GUEK}"\n')
    (tmp_path / "keys.toml").chmod(0o644)
    assert run(["check", str(configuration(tmp_path))]) == 2
    err = capfd.readouterr().err
    assert "chmod 600" in err
    assert GUEK not in err


def test_the_configuration_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENDCU_CONFIG", str(configuration(tmp_path)))
    assert run(["check"]) == 0
    assert "dcu-0001" in capfd.readouterr().out


def test_targets_are_written_as_they_are_imported() -> None:
    for name, row in COMMANDS.items():
        module, _, attribute = row.target.partition(":")
        assert module.startswith("edge_core.cli.")
        assert attribute
        if name in listed():
            assert hasattr(importlib.import_module(module), attribute)
