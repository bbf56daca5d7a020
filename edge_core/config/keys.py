"""Keys of the meters, from wherever `[keys] provider` says, as `Secret`s and nothing else.

Invariants: no value of a key is ever part of an error, a log or a repr: a mistake names file, meter and key, and at
most how many digits there are. Files are refused unless only their owner may read them. One meter's mistake is that
meter's: `KeyRing.open` raises only for what concerns all of them, `KeyRing.get` for the meter asked for.

A meter's table:  guek = "hex"  gak = "hex"  password = "text"  hls = "hex"  master = "hex"  sign = "hex"  agree = "hex"
meter_sign = "hex"  meter_agree = "hex"
guek: global unicast encryption key; gak: (global) authentication key; password: low level security; hls: secret of
the mechanisms 2, 3, 4 and 6; master: the key-encrypting key. AES keys have 16 octets, or 32 in suite 2.
sign, agree: our private keys for signatures (HLS 7, general-signing) and for key agreement, on P-256 (32 octets) or in
suite 2 on P-384 (48); meter_sign, meter_agree: the meter's public keys of the same uses, as x || y, with 04 in front or
not, or as a DER certificate, of which only the key is taken.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge_core.config.models import DlmsModel
from edge_core.config.private import read_private
from edge_core.config.sealing import Unavailable, fetch, unseal
from edge_core.config.tables import ConfigErrors, Findings, did_you_mean
from edge_core.domain.secret import Secret
from edge_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from edge_core.config.schema import Config, Keys, Meter

NAMES = (
    "guek",
    "gak",
    "password",
    "hls",
    "master",
    "sign",
    "agree",
    "meter_sign",
    "meter_agree",
)
AES_KEYS = ("guek", "gak", "master")
PRIVATE_KEYS = ("sign", "agree")
PUBLIC_KEYS = ("meter_sign", "meter_agree")
POINT_OCTETS = (64, 65, 96, 97)
MAX_SECRET_OCTETS = 64
MAX_CERTIFICATE_OCTETS = 4096
COMMAND_TIMEOUT_S = 10.0
COMMAND_OUTPUT_BYTES = 64 << 10
COMMANDS_AT_ONCE = 4


class MeterKeys(msgspec.Struct, frozen=True):
    """The keys of one meter; None for those it has not."""

    guek: Secret | None = None
    gak: Secret | None = None
    password: Secret | None = None
    hls: Secret | None = None
    master: Secret | None = None
    sign: Secret | None = None
    agree: Secret | None = None
    meter_sign: Secret | None = None
    meter_agree: Secret | None = None

    def secrets(self) -> Iterator[Secret]:
        """Those that are there."""
        for name in NAMES:
            secret = getattr(self, name)
            if secret is not None:
                yield secret


class KeyRing:
    """Keys by meter.

    `get` is immediate, but under the provider `command`, where it waits for the command the first time
    (COMMAND_TIMEOUT_S at most): `prefetch` asks for many at once, in a thread of the caller's choice.
    """

    def __init__(self, keys: Keys, environment: Mapping[str, str] = os.environ) -> None:
        self._keys = keys
        self._environment = environment
        self._held: dict[str, MeterKeys] = {}
        self._mistakes: dict[str, list[ConfigError]] = {}
        self.unavailable: Unavailable | None = None
        """Why no meter has keys now, though a later try may bring them: the cloud that keeps them is away."""

    @classmethod
    def open(cls, keys: Keys, environment: Mapping[str, str] = os.environ) -> KeyRing:
        """The keys that `[keys]` refers to.

        Raises:
            ConfigErrors: the file is missing, not TOML, or readable by others than its owner; a sealed file cannot be
                unsealed here.
        """
        ring = cls(keys, environment)
        tables: dict[str, Any] = {}
        try:
            if keys.provider == "file":
                tables = parse_file(Path(keys.file))
            elif keys.provider == "sealed":
                tables = dict(unseal(Path(keys.file), keys.kek, environment))
            elif keys.provider == "secret":
                tables = _tables_of(fetch(keys.secret, environment), f"secret {keys.secret}")
        except Unavailable as away:
            ring.unavailable = away
        for meter, table in tables.items():
            ring._take(meter, table, keys.file)
        return ring

    @classmethod
    def of(cls, config: Config, environment: Mapping[str, str] = os.environ) -> KeyRing:
        """The keys of a configuration; a fleet that needs none (Modbus, HAN ports) needs no file either.

        Raises:
            ConfigErrors: as `open`.
        """
        keys = config.keys
        absent = keys.provider in ("file", "sealed") and not Path(keys.file).exists()
        if (absent or keys.provider == "secret") and not any(
            needed(config, meter) for meter in config.meters.values()
        ):
            return cls(keys, environment)
        return cls.open(config.keys, environment)

    def get(self, meter: str) -> MeterKeys:
        """The keys of a meter; all None when there are none.

        Raises:
            ConfigErrors: a key of this meter is no key, or the command failed.
        """
        if meter not in self._held and meter not in self._mistakes:
            if self._keys.provider == "env":
                self._take(meter, dict(self._from_environment(meter)), "environment")
            elif self._keys.provider == "command":
                self._ask(meter)
        if self.unavailable is not None:
            raise self.unavailable
        if meter in self._mistakes:
            raise ConfigErrors(self._mistakes[meter])
        return self._held.get(meter, _NO_KEYS)

    def prefetch(self, meters: Iterable[str]) -> None:
        """Ask the command for many meters, COMMANDS_AT_ONCE in parallel; mistakes wait for `get`. Blocks."""
        if self._keys.provider != "command":
            return
        with concurrent.futures.ThreadPoolExecutor(COMMANDS_AT_ONCE, "keys") as pool:
            list(pool.map(self._ask, [m for m in meters if m not in self._held]))

    @property
    def mistakes(self) -> list[ConfigError]:
        """What is wrong with the keys seen so far."""
        return [mistake for of_meter in self._mistakes.values() for mistake in of_meter]

    def meters(self) -> list[str]:
        """Meters that have keys here, as far as they are known."""
        return [*self._held, *self._mistakes]

    def secrets(self) -> Iterator[Secret]:
        """Every secret held: for tests that look for them where they must not be."""
        for held in self._held.values():
            yield from held.secrets()

    def _take(self, meter: str, table: object, file: str) -> None:
        findings = Findings()
        held = keys_of(table, findings, file, meter)
        if findings.mistakes:
            self._mistakes[meter] = findings.mistakes
        else:
            self._mistakes.pop(meter, None)
            self._held[meter] = held

    def _from_environment(self, meter: str) -> Iterator[tuple[str, str]]:
        stem = "OPENDCU_KEY_" + re.sub("[^A-Za-z0-9]", "_", meter)
        for name in NAMES:
            variable = f"{stem}_{name.upper()}"
            value = self._environment.get(variable) or self._environment.get(variable.upper())
            if value:
                yield name, value

    def _ask(self, meter: str) -> None:
        """Run the command for one meter; its standard error is not shown, for it may hold anything."""
        program = self._keys.command[0]

        def refuse(problem: str) -> None:
            self._mistakes[meter] = [
                ConfigError("[keys] command", meter, "", f"{program}: {problem}")
            ]

        try:
            done = subprocess.run(  # noqa: S603 the command of the configuration
                [*self._keys.command, meter],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return refuse(f"no answer within {COMMAND_TIMEOUT_S:.0f} s")
        except OSError as error:
            return refuse(f"cannot be run: {error.strerror}")
        if done.returncode:
            return refuse(f"exit {done.returncode}")
        if len(done.stdout) > COMMAND_OUTPUT_BYTES:
            return refuse(f"more than {COMMAND_OUTPUT_BYTES >> 10} KiB of output")
        try:
            table = _tables_of(done.stdout, program)
        except ConfigErrors:
            return refuse("the output is neither a JSON object nor TOML")
        return self._take(meter, table, "[keys] command")


_NO_KEYS = MeterKeys()


def _tables_of(octets: bytes, name: str) -> dict[str, Any]:
    """What a text of JSON or TOML holds; an error names the text, for its own message would quote it."""
    try:
        text = octets.decode()
        found = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except (ValueError, RecursionError):
        raise ConfigErrors(
            [ConfigError(name, "", "", "is neither a JSON object nor TOML")]
        ) from None
    return dict(found)


def keys_of(table: object, findings: Findings, file: str, meter: str) -> MeterKeys:
    """The keys of one meter's table; mistakes are added without their values."""
    if not isinstance(table, dict):
        findings.mistake(file, meter, "", "expected a table of keys")
        return _NO_KEYS
    held: dict[str, Secret] = {}
    for name, value in table.items():
        if name not in NAMES:
            findings.mistake(
                file,
                meter,
                name,
                "unknown key",
                did_you_mean(name, NAMES) or f"known: {', '.join(NAMES)}",
            )
        elif not isinstance(value, str) or not value:
            findings.mistake(file, meter, name, "expected a text that is not empty")
        else:
            try:
                held[name] = _secret(name, value)
            except ValueError as error:
                # from None: the cause would hold the key
                findings.mistake(file, meter, name, str(error))
    return MeterKeys(**held)


def _secret(name: str, value: str) -> Secret:
    """One key; ValueError without its value."""
    if name == "password":
        octets = value.encode()
        if len(octets) > MAX_SECRET_OCTETS:
            raise ValueError(f"{len(octets)} octets, a password has at most {MAX_SECRET_OCTETS}")
        return Secret(octets)
    digits = re.sub(r"[\s:]", "", value)
    for position, character in enumerate(digits, 1):
        if character not in "0123456789abcdefABCDEF":
            raise ValueError(f"character {position} of {len(digits)} is no hex digit")
    if name in AES_KEYS and len(digits) not in (32, 64):
        raise ValueError(f"{len(digits)} hex digits; an AES key has 32 (or 64 in suite 2)")
    if name in PRIVATE_KEYS and len(digits) not in (64, 96):
        raise ValueError(f"{len(digits)} hex digits; a private key has 64 (or 96 in suite 2)")
    if name in PUBLIC_KEYS:
        return _public(digits)
    if len(digits) % 2 or len(digits) > 2 * MAX_SECRET_OCTETS:
        raise ValueError(
            f"{len(digits)} hex digits; expected two an octet, at most {MAX_SECRET_OCTETS} octets"
        )
    return Secret(bytes.fromhex(digits))


def _public(digits: str) -> Secret:
    """A public key, or the certificate that holds it."""
    certificate = digits[:2] == "30" and 2 * max(POINT_OCTETS) < len(digits)
    if len(digits) % 2 or not (
        certificate or len(digits) // 2 in POINT_OCTETS or len(digits) > 2 * MAX_CERTIFICATE_OCTETS
    ):
        raise ValueError(
            f"{len(digits)} hex digits; a public key has 128 (or 192 in suite 2), or it is a DER certificate"
        )
    if len(digits) > 2 * MAX_CERTIFICATE_OCTETS:
        raise ValueError(f"a certificate of more than {MAX_CERTIFICATE_OCTETS} octets")
    return Secret(bytes.fromhex(digits))


def parse_file(path: Path) -> dict[str, Any]:
    """Tables by meter of a keys file.

    Raises:
        ConfigErrors: as `read_private`, or it is not TOML; the message quotes nothing of it but the place.
    """
    octets = read_private(path)
    try:
        return tomllib.loads(octets.decode())
    except (ValueError, RecursionError) as error:
        place = re.search(r"\(at (line \d+, column \d+|end of document)\)", str(error))
        raise ConfigErrors(
            [
                ConfigError(
                    str(path), "", "", f"is not TOML at {place[1] if place else 'a place unknown'}"
                )
            ]
        ) from None


def read_reference(text: str, environment: Mapping[str, str] = os.environ) -> Secret | None:
    """What `file:<path>` (mode 0600) or `env:<NAME>` refers to, without a trailing newline; None for "".

    Raises:
        ConfigErrors: the file is missing or not private, the variable is not set, or it is no reference.
    """
    if not text:
        return None
    kind, _, name = text.partition(":")
    if kind == "file":
        return Secret(read_private(Path(name)).rstrip(b"\r\n"))
    if kind == "env":
        if name in environment:
            return Secret(environment[name].encode())
        raise ConfigErrors([ConfigError("environment", "", name, "is not set")])
    raise ConfigErrors([ConfigError("reference", "", "", 'expected "file:<path>" or "env:<NAME>"')])


# Check ----------------------------------------------------------------------------------------------------------------


def needed(config: Config, meter: Meter) -> tuple[str, ...]:
    """Names of the keys without which the meter cannot be read."""
    model = config.models.get(meter.model)
    if not isinstance(model, DlmsModel):
        return ()
    association = model.association
    security = meter.security or association.security
    names: list[str] = []
    if security == "lls":
        names.append("password")
    elif security in ("hls2", "hls3", "hls4", "hls6"):
        names.append("hls")
    if security == "hls5" or association.ciphering != "none":
        names.append("guek")
    if security == "hls5" or "authenticated" in association.protection:
        names.append("gak")
    if security == "hls7" or association.signed:
        names += ["sign", "meter_sign"]
    if association.ciphering == "general-ciphering":
        names += MESSAGE_KEYS.get(association.key_info, ())
    return tuple(dict.fromkeys(names))


MESSAGE_KEYS = {
    "wrapped": ("master",),
    "one-pass": ("sign", "meter_sign", "agree", "meter_agree"),
    "static": ("agree", "meter_agree"),
}
"""By key-info of general-ciphering: the keys that make and open the keys of messages."""


def check_keys(config: Config, environment: Mapping[str, str] = os.environ) -> list[ConfigError]:
    """Everything wrong with the keys of a configuration: unreadable, no keys, missing. More keys than meters are fine."""
    wanted = {
        meter.id: names for meter in config.meters.values() if (names := needed(config, meter))
    }
    if not wanted and not (config.keys.provider == "file" and Path(config.keys.file).exists()):
        return []
    try:
        ring = KeyRing.open(config.keys, environment)
    except ConfigErrors as refusal:
        return refusal.errors
    if ring.unavailable is not None:
        return ring.unavailable.errors
    ring.prefetch(wanted)
    findings = Findings()
    strays = [meter for meter in ring.meters() if meter not in config.meters][:1000]
    file = {
        "file": config.keys.file,
        "sealed": config.keys.file,
        "env": "environment",
        "secret": f"secret {config.keys.secret}",
    }.get(config.keys.provider, "[keys] command")
    for meter, names in wanted.items():
        try:
            held = ring.get(meter)
        except ConfigErrors:
            continue  # told below
        missing = [name for name in names if getattr(held, name) is None]
        if missing:
            problem = "missing: the meter cannot be read without it"
            hint = did_you_mean(meter, strays) if held is _NO_KEYS else ""
            findings.mistake(file, meter, ", ".join(missing), problem, hint)
    return ring.mistakes + findings.mistakes
