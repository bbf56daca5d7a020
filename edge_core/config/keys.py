"""Keys of the meters: from a file, the environment, a command or a sealed file, as `Secret`s and nothing else.

Invariants: no value of a key is ever part of an error, a log or a repr: a mistake names file, meter and key, and at
most how many digits there are. Files are refused unless only their owner may read them. One meter's mistake is that
meter's: `KeyRing.open` raises only for what concerns all of them, `KeyRing.get` for the meter asked for.

A meter's table:  guek = "hex"  gak = "hex"  password = "text"  hls = "hex"  master = "hex"
guek: global unicast encryption key; gak: (global) authentication key; password: low level security; hls: secret of
the mechanisms 2 to 6; master: the key-encrypting key. AES keys have 16 octets, or 32 in suite 2.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge_core.config.models import DlmsModel
from edge_core.config.tables import ConfigErrors, Findings, did_you_mean
from edge_core.domain.secret import Secret
from edge_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from edge_core.config.schema import Config, Keys, Meter

NAMES = ("guek", "gak", "password", "hls", "master")
AES_KEYS = ("guek", "gak", "master")
MAX_SECRET_OCTETS = 64
MAX_FILE_BYTES = 64 << 20
COMMAND_TIMEOUT_S = 10.0
COMMAND_OUTPUT_BYTES = 64 << 10
COMMANDS_AT_ONCE = 4
SEALED_SCHEMA = "opendcu.sealed/1"
CREDENTIAL = "opendcu-kek"
"""Name of the systemd credential (LoadCredentialEncrypted=) that holds the key-encrypting key."""


class MeterKeys(msgspec.Struct, frozen=True):
    """The keys of one meter; None for those it has not."""

    guek: Secret | None = None
    gak: Secret | None = None
    password: Secret | None = None
    hls: Secret | None = None
    master: Secret | None = None

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

    @classmethod
    def open(cls, keys: Keys, environment: Mapping[str, str] = os.environ) -> KeyRing:
        """The keys that `[keys]` refers to.

        Raises:
            ConfigErrors: the file is missing, not TOML, or readable by others than its owner.
        """
        ring = cls(keys, environment)
        if keys.provider == "file":
            for meter, table in parse_file(Path(keys.file)).items():
                ring._take(meter, table, keys.file)
        elif keys.provider == "sealed":
            for meter, table in unseal(Path(keys.file), environment).items():
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
        if absent and not any(needed(config, meter) for meter in config.meters.values()):
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
            text = done.stdout.decode()
            table = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
        except (ValueError, RecursionError):  # their messages would quote the output
            return refuse("the output is neither a JSON object nor TOML")
        return self._take(meter, table, "[keys] command")


_NO_KEYS = MeterKeys()


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
    if len(digits) % 2 or len(digits) > 2 * MAX_SECRET_OCTETS:
        raise ValueError(
            f"{len(digits)} hex digits; expected two an octet, at most {MAX_SECRET_OCTETS} octets"
        )
    return Secret(bytes.fromhex(digits))


def read_private(path: Path) -> bytes:
    """The content of a file that only its owner may read.

    Raises:
        ConfigErrors: it is missing, too large, no regular file, or others may read or write it.
    """

    def refuse(problem: str, hint: str = "") -> ConfigErrors:
        return ConfigErrors([ConfigError(str(path), "", "", problem, hint)])

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise refuse("no such file") from None
    except OSError as error:
        raise refuse(f"cannot be read: {error.strerror}") from None
    try:  # the descriptor that is checked is the one that is read
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise refuse("is no regular file")
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise refuse(f"mode {mode:04o}: others than its owner may use it", f"chmod 600 {path}")
        if status.st_uid not in (0, os.geteuid()):
            raise refuse(f"belongs to user {status.st_uid}, we are {os.geteuid()}", "chown it")
        if status.st_size > MAX_FILE_BYTES:
            raise refuse(f"is larger than {MAX_FILE_BYTES >> 20} MiB")
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            return stream.read()
    finally:
        os.close(descriptor)


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


# Sealed files ---------------------------------------------------------------------------------------------------------


def _kek(environment: Mapping[str, str]) -> bytes:
    """The key-encrypting key, from the systemd credential (which the TPM or the host key unseals for the service)."""
    folder = environment.get("CREDENTIALS_DIRECTORY", "")
    if not folder:
        raise ConfigErrors(
            [
                ConfigError(
                    "[keys]",
                    "provider",
                    "sealed",
                    "CREDENTIALS_DIRECTORY is not set",
                    f"give the service LoadCredentialEncrypted={CREDENTIAL}",
                )
            ]
        )
    kek = read_private(Path(folder) / CREDENTIAL)
    if len(kek) not in (16, 32):
        raise ConfigErrors(
            [
                ConfigError(
                    CREDENTIAL, "", "", f"{len(kek)} octets; a key-encrypting key has 16 or 32"
                )
            ]
        )
    return kek


def seal(tables: Mapping[str, Mapping[str, str]], kek: bytes) -> bytes:
    """A sealed file of the tables of a keys file: AES key wrap with padding (RFC 5649) of each key.

    Meter and name are wrapped with the key, so that no entry can be moved to another meter.
    """
    from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding

    sealed = {
        meter: {
            name: aes_key_wrap_with_padding(kek, json.dumps([meter, name, value]).encode()).hex()
            for name, value in table.items()
        }
        for meter, table in tables.items()
    }
    return json.dumps({"schema": SEALED_SCHEMA, "meters": sealed}, indent=1).encode()


def unseal(path: Path, environment: Mapping[str, str] = os.environ) -> dict[str, dict[str, str]]:
    """The tables of a sealed file.

    Raises:
        ConfigErrors: no credential, a damaged file, or one sealed under another key or for another meter.
    """
    from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap_with_padding

    kek = _kek(environment)
    octets = read_private(path)
    try:
        document = msgspec.json.decode(octets, type=dict[str, str | dict[str, dict[str, str]]])
        meters = document["meters"]
        if document.get("schema") != SEALED_SCHEMA or isinstance(meters, str):
            raise ValueError("schema")  # noqa: TRY301 one answer for whatever is wrong with the file
    except (ValueError, KeyError, RecursionError):
        raise ConfigErrors([ConfigError(str(path), "", "", "is no sealed keys file")]) from None
    tables: dict[str, dict[str, str]] = {}
    findings = Findings()
    for meter, table in meters.items():
        for name, wrapped in table.items():
            try:
                entry = json.loads(aes_key_unwrap_with_padding(kek, bytes.fromhex(wrapped)))
            except (InvalidUnwrap, ValueError):
                findings.mistake(
                    str(path), meter, name, "cannot be unsealed: another key, or damaged"
                )
                continue
            if entry[:2] != [meter, name]:
                findings.mistake(str(path), meter, name, "was sealed for another meter or key")
                continue
            tables.setdefault(meter, {})[name] = entry[2]
    findings.raise_mistakes()
    return tables


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
    return tuple(names)


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
    ring.prefetch(wanted)
    findings = Findings()
    strays = [meter for meter in ring.meters() if meter not in config.meters][:1000]
    file = {"file": config.keys.file, "sealed": config.keys.file, "env": "environment"}.get(
        config.keys.provider, "[keys] command"
    )
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
