"""No key of any meter is in any log, output, file or message of a whole run, in any spelling."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import eventually_sync, free_port

pytestmark = pytest.mark.system
PROGRAM = Path(sys.executable).with_name("opendcu")
CONFIG = """
[gateway]
id = "dcu-secrets"
data_dir = "data"
timezone = "Asia/Kolkata"
roles = ["dlms", "push", "uplink", "console"]
[uplink]
kind = "file"
url = "out"
[push]
listen = ["udp://127.0.0.1:0"]
[console]
listen = "127.0.0.1:{port}"
[schedule]
instantaneous = "every 1min"
[fleet]
file = "fleet/meters.csv"
[keys]
file = "fleet/keys.toml"
"""
ENVIRONMENT = os.environ | {"OPENDCU_LOG": "debug,json"}


def spellings(octets: bytes) -> Iterator[bytes]:
    """Every way a key could be seen."""
    yield octets
    for text in (
        octets.hex(),
        octets.hex().upper(),
        octets.hex(" "),
        octets.hex(":"),
        base64.b64encode(octets).decode(),
    ):
        yield text.encode()
    yield repr(octets)[2:-1].encode()
    yield json.dumps(octets.decode("latin-1"))[1:-1].encode()


def opendcu(folder: Path, *args: str) -> bytes:
    done = subprocess.run(
        [PROGRAM, *args], cwd=folder, capture_output=True, check=False, timeout=60, env=ENVIRONMENT
    )
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_no_key_is_seen_anywhere(tmp_path: Path) -> None:
    fleet = subprocess.Popen(
        [PROGRAM, "simulate", "--meters", "5", "--history", "6h", "--out", tmp_path / "fleet"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=tmp_path,
    )
    gateway = None
    try:
        assert fleet.stdout is not None
        assert json.loads(fleet.stdout.readline())["ready"]
        lines = (tmp_path / "fleet" / "lines.toml").read_text()
        (tmp_path / "gateway.toml").write_text(CONFIG.format(port=free_port()) + lines)
        # one meter gets a wrong key, one a key that is no key: their errors are the likeliest place to show one
        keys_file = tmp_path / "fleet" / "keys.toml"
        keys = tomllib.loads(keys_file.read_text())
        names = list(keys)
        keys[names[0]]["gak"] = os.urandom(16).hex()
        keys[names[1]]["guek"] = os.urandom(16).hex()[:-1]
        keys_file.write_text(
            "".join(
                f"[{m}]\n" + "".join(f'{k} = "{v}"\n' for k, v in t.items())
                for m, t in keys.items()
            )
        )
        with (tmp_path / "gateway.log").open("wb") as log:
            gateway = subprocess.Popen(
                [PROGRAM, "run", "-c", "gateway.toml"],
                cwd=tmp_path,
                stdout=log,
                stderr=log,
                env=ENVIRONMENT,
            )

        def states() -> dict[str, str]:
            """State by meter; empty while nobody listens yet."""
            frame = json.loads(opendcu(tmp_path, "top", "--once", "--json").splitlines()[0])
            return {m["meter"]: m["state"] for m in frame.get("meters", ())}

        eventually_sync(
            lambda: sorted(states().values()) == ["ok", "ok", "ok", "silent", "silent"], 60
        )
        outputs = {
            "check": opendcu(tmp_path, "check", "gateway.toml"),
            "read": opendcu(tmp_path, "read", names[2], "--trace", "--what", "interval"),
            "read-wrong-key": opendcu(tmp_path, "read", names[0], "--json"),
            "read-no-key": opendcu(tmp_path, "read", names[1]),
            "top": opendcu(tmp_path, "top", "--once"),
            "gaps": opendcu(tmp_path, "gaps", "--all"),
            "status": opendcu(tmp_path, "journal", "status", "--json"),
        }
        assert b"31 hex digits" in outputs["check"]
        assert b"1.0.99.1.0.255" in outputs["read"] or b"interval" in outputs["read"], outputs[
            "read"
        ]
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(15) == 0, (tmp_path / "gateway.log").read_text()[-2000:]
    finally:
        for process in (gateway, fleet):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        assert fleet.stdin is not None
        assert fleet.stdout is not None
        fleet.stdin.close()
        fleet.stdout.close()

    secrets = {
        (meter, name): value.encode()
        if name == "password"
        else bytes.fromhex(value[: len(value) // 2 * 2])
        for meter, table in keys.items()
        for name, value in table.items()
    }
    assert len(secrets) >= 10
    places = {name: text for name, text in outputs.items() if text}
    for path in (
        tmp_path / "gateway.log",
        *(tmp_path / "data").rglob("*"),
        *(tmp_path / "out").rglob("*"),
    ):
        if path.is_file():
            places[str(path.relative_to(tmp_path))] = path.read_bytes()
    assert "data/journal.db" in places
    assert "data/counters.db" in places
    assert any(name.startswith("out/") for name in places), "messages were sent"
    assert (
        b'"level": "debug"' in places["gateway.log"] or b'"level": "info"' in places["gateway.log"]
    )

    def found_in(text: bytes) -> set[tuple[str, str]]:
        return {who for who, octets in secrets.items() if any(s in text for s in spellings(octets))}

    assert found_in(keys_file.read_bytes()) == set(secrets), (
        "what looks for keys finds them where they are"
    )
    assert {where: seen for where, text in places.items() if (seen := found_in(text))} == {}
