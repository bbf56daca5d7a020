"""Keys: where they come from, and that none of them is ever shown."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from edge_core.config.keys import KeyRing, MeterKeys, check_keys, read_reference
from edge_core.config.load import ConfigErrors, load
from edge_core.config.private import read_private
from edge_core.config.schema import Keys
from edge_core.domain import Secret

GUEK = "000102030405060708090a0b0c0d0e0f"
GAK = "d0d1d2d3d4d5d6d7d8d9dadbdcdddedf"


def keys_file(folder: Path, text: str, mode: int = 0o600) -> Keys:
    path = folder / "keys.toml"
    path.write_text(text)
    path.chmod(mode)
    return Keys(file=str(path))


def test_keys_of_a_file(tmp_path: Path) -> None:
    ring = KeyRing.open(
        keys_file(
            tmp_path,
            f'[GP1]\nguek = "{GUEK}"\ngak = "D0 D1 D2 D3 D4 D5 D6 D7 D8 D9 DA DB DC DD DE DF"\n'
            f'password = "grüße"\nhls = "a1b2"\nmaster = "{GUEK}{GAK}"\n["GP/2"]\nguek = "{GAK}"\n',
        )
    )
    held = ring.get("GP1")
    assert held.guek is not None
    assert held.guek.reveal() == bytes(range(16))
    assert held.gak == Secret(bytes.fromhex(GAK))
    assert held.password == Secret("grüße".encode())
    assert held.hls == Secret(b"\xa1\xb2")
    assert held.master is not None
    assert len(held.master) == 32
    assert ring.get("GP/2").gak is None
    assert ring.get("unknown") == MeterKeys()
    assert len(list(ring.secrets())) == 6
    assert GUEK not in repr(held)


POINT = "6b" * 64


@pytest.mark.parametrize(
    ("sign", "point"),
    [
        ("11" * 32, POINT),
        ("11" * 32, "04" + POINT),
        ("22" * 48, "6b" * 96),
        ("22" * 48, "04" + "6b" * 96),
        ("11" * 32, "3082" + "00" * 400),
    ],
    ids=["p256", "p256-04", "p384", "p384-04", "certificate"],
)
def test_keys_of_suites_1_and_2(tmp_path: Path, sign: str, point: str) -> None:
    text = (
        f'[GP1]\nsign = "{sign}"\nagree = "{sign}"\n'
        f'meter_sign = "{point}"\nmeter_agree = "{point}"\n'
    )
    held = KeyRing.open(keys_file(tmp_path, text)).get("GP1")
    assert held.sign == held.agree == Secret(bytes.fromhex(sign))
    assert held.meter_sign == held.meter_agree == Secret(bytes.fromhex(point))
    assert len(list(held.secrets())) == 4
    assert sign[:16] not in repr(held)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o602])
def test_a_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigErrors, match=f"mode {mode:04o}.*chmod 600"):
        KeyRing.open(keys_file(tmp_path, f'[GP1]\nguek = "{GUEK}"\n', mode))


def test_what_is_no_private_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors, match="no such file"):
        KeyRing.open(Keys(file=str(tmp_path / "none")))
    with pytest.raises(ConfigErrors, match="no regular file"):
        read_private(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigErrors, match="no regular file"):  # and does not wait for a writer
        read_private(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (f'guek = "{GUEK[:-1]}"', "31 hex digits; an AES key has 32"),
        (f'guek = "{GUEK[:-1]}x"', "character 32 of 32 is no hex digit"),
        (f'gak = "{GAK}00"', "34 hex digits"),
        ('hls = "abc"', "3 hex digits; expected two an octet"),
        (f'hls = "{GAK * 5}"', "at most 64 octets"),
        (f'password = "{GAK * 3}"', "96 octets, a password has at most 64"),
        (f'sign = "{GUEK}"', "32 hex digits; a private key has 64"),
        (f'agree = "{GUEK * 5}"', "160 hex digits; a private key has 64"),
        (f'meter_sign = "{GUEK * 3}"', "96 hex digits; a public key has 128"),
        (f'meter_agree = "30{GUEK * 400}"', "a certificate of more than 4096 octets"),
        ('guek = ""', "not empty"),
        ("guek = 123456789012345678", "expected a text"),
        (f'geuk = "{GUEK}"', 'did you mean "guek"'),
    ],
)
def test_a_bad_key_is_named_and_not_shown_and_its_neighbours_work(
    tmp_path: Path, line: str, says: str
) -> None:
    ring = KeyRing.open(keys_file(tmp_path, f'[GP1]\n{line}\n[GP2]\nguek = "{GUEK}"\n'))
    with pytest.raises(ConfigErrors) as refusal:
        ring.get("GP1")
    text = str(refusal.value)
    assert says in text
    assert "GP1" in text
    assert GUEK[:12] not in text
    assert GAK[:12] not in text
    assert "123456789012345678" not in text
    assert ring.get("GP2").guek is not None
    assert len(ring.mistakes) == 1


def test_a_file_that_is_no_toml_is_named_by_place_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors, match="not TOML at line 2, column") as refusal:
        KeyRing.open(keys_file(tmp_path, f"[GP1]\nguek = {GUEK}zz\n"))
    assert GUEK[:8] not in str(refusal.value)
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__


def test_keys_of_the_environment() -> None:
    ring = KeyRing.open(
        Keys(provider="env"),
        {
            "OPENDCU_KEY_GP_1_GUEK": GUEK,
            "OPENDCU_KEY_GP_1_PASSWORD": "pass",
            "OPENDCU_KEY_M2_GAK": "nonsense",
        },
    )
    assert ring.get("GP-1").guek == Secret(bytes.fromhex(GUEK))
    assert ring.get("GP-1").password == Secret(b"pass")
    assert ring.get("GP3") == MeterKeys()
    with pytest.raises(ConfigErrors, match="gak: character 1 of 8") as refusal:
        ring.get("m2")
    assert "nonsense" not in str(refusal.value)


def command(folder: Path, body: str) -> Keys:
    script = folder / "vault.py"
    script.write_text("import sys, time, json\nmeter = sys.argv[-1]\n" + body)
    return Keys(provider="command", command=(sys.executable, str(script), "--for"))


def test_keys_of_a_command_asked_once_a_meter(tmp_path: Path) -> None:
    log = tmp_path / "asked"
    ring = KeyRing.open(
        command(
            tmp_path,
            f"open({str(log)!r}, 'a').write(meter + '\\n')\n"
            f"print(json.dumps({{'guek': '{GUEK}'}}) if meter == 'GP1' else 'gak = \"{GAK}\"')\n",
        )
    )
    ring.prefetch(["GP1", "GP2"])
    assert ring.get("GP1").guek == Secret(bytes.fromhex(GUEK))
    assert ring.get("GP2").gak == Secret(bytes.fromhex(GAK))
    assert ring.get("GP3").gak == Secret(bytes.fromhex(GAK))
    assert sorted(log.read_text().split()) == ["GP1", "GP2", "GP3"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("sys.exit(3)", "exit 3"),
        (f"print('{GUEK} is the key')", "neither a JSON object nor TOML"),
        ("print('x' * 100_000)", "more than 64 KiB"),
        (f"print('guek = \"{GUEK}ff\"')", "34 hex digits"),
    ],
)
def test_a_command_that_fails(tmp_path: Path, body: str, says: str) -> None:
    ring = KeyRing.open(command(tmp_path, body))
    with pytest.raises(ConfigErrors, match=says) as refusal:
        ring.get("GP1")
    assert GUEK[:8] not in str(refusal.value)
    with pytest.raises(ConfigErrors, match="cannot be run"):
        KeyRing.open(Keys(provider="command", command=("/nowhere/vault",))).get("GP1")


# References and check -------------------------------------------------------------------------------------------------


def test_references(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("hunter2\n")
    path.chmod(0o600)
    assert read_reference("") is None
    assert read_reference(f"file:{path}") == Secret(b"hunter2")
    assert read_reference("env:PW", {"PW": "hunter3"}) == Secret(b"hunter3")
    with pytest.raises(ConfigErrors, match="PW: is not set"):
        read_reference("env:PW", {})
    with pytest.raises(ConfigErrors, match="expected") as refusal:
        read_reference("hunter2")
    assert "hunter2" not in str(refusal.value)
    path.chmod(path.stat().st_mode | stat.S_IROTH)
    with pytest.raises(ConfigErrors, match="chmod 600"):
        read_reference(f"file:{path}")


CONFIG = """
[gateway]
id = "dcu-1"
[[lines]]
id = "l"
transport = "tcp"
framing = "wrapper"
[[meters]]
id = "GP1"
line = "l"
model = "./d.toml"
address = "1.2.3.4:5"
[[meters]]
id = "GP2"
line = "l"
model = "./d.toml"
address = "1.2.3.5:5"
security = "lls"
"""
MODEL = """
schema = "opendcu.model/1"
[model]
maker = "Test"
families = ["T2"]
protocol = "dlms"
source = ["this test"]
[association]
security = "hls5"
ciphering = "glo"
protection = "authenticated-encrypted"
"""


def test_check_names_every_meter_without_its_keys(tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(CONFIG)
    (tmp_path / "d.toml").write_text(MODEL)
    config = load(tmp_path / "gateway.toml", environment={})
    assert "no such file" in str(check_keys(config, {})[0])
    keys_file(tmp_path, f'[GP1]\nguek = "{GUEK}"\n[GP02]\npassword = "p"\n')
    first, second = check_keys(config, {})
    assert (first.table, first.key) == ("GP1", "gak")
    assert (second.table, second.key) == ("GP2", "password, guek, gak")
    assert 'did you mean "GP02"' in second.hint
    keys_file(
        tmp_path,
        f'[GP1]\nguek = "{GUEK}"\ngak = "{GAK}"\n[GP2]\npassword = "p"\nguek = "{GUEK}"\ngak = "{GAK}"\n'
        '[of-another-gateway]\nhls = "ab"\n',
    )
    assert check_keys(config, {}) == []
