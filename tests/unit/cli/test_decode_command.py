"""`opendcu decode` as an installed command: inputs, keys, errors, exit codes."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_core.cli import decode as decode_command
from edge_core.cli import main

FRAMES = Path(__file__).parents[2] / "data" / "frames"
GASP = json.loads((FRAMES / "gurux_last_gasp_push.json").read_text())
PLAIN = GASP["frames"]["plain"][0]
SEALED = GASP["frames"]["general_glo"][0]
GUEK, GAK = GASP["keys"]["encryption"], GASP["keys"]["authentication"]


def run(*args: str, stdin: str | bytes = "") -> tuple[int, str, str]:
    """Exit code, output and errors of the command, run in this process."""
    octets = stdin.encode() if isinstance(stdin, str) else stdin
    out, err = io.StringIO(), io.StringIO()
    standard = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(octets))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main.run(["decode", *args])
    finally:
        sys.stdin = standard
    return code, out.getvalue(), err.getvalue()


def document(*args: str, stdin: str | bytes = "") -> dict[str, Any]:
    code, out, _ = run(*args, stdin=stdin)
    assert code == 0, out
    loaded = json.loads(out)
    assert isinstance(loaded, dict)
    return loaded


def test_the_installed_command_reads_standard_input() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "opendcu"), "decode", "--json", "-"],
        input=PLAIN,
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["apdu"] == "data-notification"
    assert done.stderr == ""


def test_the_contract_of_the_document() -> None:
    code, out, err = run("--json", "--guek", GUEK, "--gak", GAK, SEALED)
    assert code == 0
    assert out.count("\n") == 1
    assert "command line" in err
    got = json.loads(out)
    assert {
        "framing",
        "apdu",
        "plain_apdu",
        "ciphered",
        "authenticated",
        "invocation_counter",
        "system_title",
        "value",
        "readings",
        "warnings",
    } <= set(got)
    assert (got["framing"], got["apdu"]) == ("wrapper", "data-notification")
    assert got["plain_apdu"] == GASP["plain_apdu"]
    assert (got["ciphered"], got["authenticated"], got["invocation_counter"]) == (True, True, 7)
    assert got["system_title"] == GASP["checks"]["glo"]["system_title"]
    assert got["value"][3]["bits"].index("1") == 85
    assert got["value"][3]["set"] == [85]
    assert got["value"][1] == {"octets": "0004190900ff", "obis": "0.4.25.9.0.255"}


def test_inputs(tmp_path: Path) -> None:
    want = document(PLAIN)
    spaced = " ".join(PLAIN[i : i + 2] for i in range(0, len(PLAIN), 2))
    hexfile = tmp_path / "capture.hex"
    hexfile.write_text(f"# a last gasp\n{spaced.upper()}  # one frame\n\n")
    binary = tmp_path / "capture.bin"
    binary.write_bytes(bytes.fromhex(PLAIN))
    assert document(str(hexfile)) == want
    assert document(str(binary)) == want
    assert document(stdin=PLAIN) == want
    assert document("-", stdin=spaced) == want
    assert document(*spaced.split(" ")) == want
    assert document("0x" + PLAIN) == want
    assert document(spaced.replace(" ", ":")) == want


def test_keys_from_a_file_and_from_standard_input(tmp_path: Path) -> None:
    text = (
        f'[OTHER]\nguek = "{"00" * 16}"\n[NOKEY]\npassword = "x"\n'
        f'[M1]\nguek = "{GUEK}"\ngak = "{GAK}"\n'
    )
    keys = tmp_path / "keys.toml"
    keys.write_text(text)
    keys.chmod(0o600)
    code, out, err = run("--json", "--keys", str(keys), SEALED)
    assert code == 0
    assert json.loads(out)["authenticated"] is True
    assert err == ""
    assert document("--json", "--keys", "-", SEALED, stdin=text)["authenticated"] is True


def test_keys_that_others_may_read_are_refused(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[M1]\nguek = "{GUEK}"\n')
    keys.chmod(0o644)
    code, out, _ = run("--json", "--keys", str(keys), SEALED)
    assert code == 2
    assert "0644" in out
    assert GUEK not in out


@pytest.mark.parametrize(
    ("args", "stdin", "says"),
    [
        (["--guek", "zz", "00"], "", "--guek is not hex"),
        (["--guek", "0011", "00"], "", "--guek has 2 octets"),
        (["--gak", GAK, "00"], "", "--gak without --guek"),
        (["--guek", GUEK, "--gak", GAK * 2, "00"], "", "differ in length"),
        (["--guek", GUEK, "--title", "00", "00"], "", "--title has 1 octets"),
        (["--keys", "-", "-"], GUEK, "both come from standard input"),
        (["--keys", "-", "00"], f"guek {GUEK}", "is not TOML"),
        (["--keys", "-", "00"], f'[M]\nguek = "{GUEK[:-1]}"', "31 hex digits"),
        (["--deviation", "sideways", "00"], "", "deviation"),
    ],
)
def test_wrong_use_is_named_without_the_keys(args: list[str], stdin: str, says: str) -> None:
    code, out, err = run("--json", *args, stdin=stdin)
    assert code == 2
    assert says in out + err
    assert GUEK[:-1] not in out + err
    assert GAK not in out + err


@pytest.mark.parametrize(
    ("capture", "error", "offset"),
    [
        ("zz", "MalformedFrame", 0),
        ("00 01 0", "MalformedFrame", 7),
        ("00 01\n00 qq", "MalformedFrame", 9),
        ("", "MalformedFrame", 0),
        ("99", "MalformedApdu", 0),
        ("7ea0070321930f027e", "MalformedFrame", 6),
        ("0fc00000010009", "MalformedApdu", 7),
    ],
)
def test_what_cannot_be_decoded(capture: str, error: str, offset: int) -> None:
    for args in (["--json"], []):
        code, out, _ = run(*args, stdin=capture)
        assert code == 1
        got = json.loads(out)
        assert (got["error"], got["offset"]) == (error, offset)
        assert got["message"]


def test_input_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_command, "_MAX_INPUT", 100)
    code, out, _ = run("--json", stdin="00" * 60)
    assert code == 1
    assert "more than 100" in json.loads(out)["message"]


def test_hex_that_is_longer_than_any_file_name() -> None:
    code, out, _ = run("--json", PLAIN * 100)
    assert code == 0
    assert len(json.loads(out)["apdus"]) == 100


def test_a_wrong_key_is_an_error() -> None:
    code, out, _ = run("--json", "--guek", GAK, "--gak", GUEK, SEALED)
    assert code == 1
    assert json.loads(out)["error"] == "TagInvalid"
    assert GUEK not in out


def test_deviations_of_india() -> None:
    push = "0f000000010c07e90601ff000f00ff014a0002011105"
    assert "warnings" in document(push)
    assert document(push)["details"]["time"]["datetime"].endswith("-05:30")
    got = document("--deviation", "utc-to-local", push)
    assert got["details"]["time"]["datetime"].endswith("+05:30")
    assert got["warnings"] == []
