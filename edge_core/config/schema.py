"""The configuration as frozen structs: every table of gateway.toml, every key, every default and range.

This is the single source: `load.py` converts the file table by table into these, the reference page
(docs/reference/configuration.md) is written from their types, defaults and docstrings, and the rest of the product
reads nothing else. Field names are the keys of the file. Durations are seconds, sizes are octets. Keys are never
values here, only references. Cross checks between tables live in `load.py`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec

from edge_core.config.models import DlmsModel, ModbusModel
from edge_core.config.values import Address, Duration, Schedule, Size, parse_address

Role = Literal["dlms", "modbus", "push", "detector", "uplink", "console"]
ROLES: tuple[Role, ...] = get_args(Role)

Transport = Literal["tcp", "udp", "serial"]
Framing = Literal["wrapper", "hdlc", "modbus-tcp", "modbus-rtu"]
Security = Literal["", "none", "lls", "hls2", "hls3", "hls4", "hls5", "hls6", "hls7"]
Command = Literal[
    "read",
    "ping",
    "backfill",
    "park",
    "unpark",
    "clock-set",
    "relay",
    "image-transfer",
    "push-setup",
    "key-change",
    "fleet-sync",
    "confirm",
]

FilePath = Annotated[str, msgspec.Meta(extra={"path": True})]
"""A path; relative ones are taken from the folder of the file that names them, and are absolute after loading."""

Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
SystemTitle = Annotated[
    str, msgspec.Meta(pattern=r"^([0-9A-Fa-f]{16})?$", extra={"says": "8 octets as 16 hex digits"})
]
ThingName = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9:_-]{1,128}$",
        extra={"says": "1 to 128 letters, digits, : _ -, as IoT thing names are"},
    ),
]
MeterId = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}$",
        extra={"says": "1 to 64 letters, digits and . _ : / -, beginning with a letter or digit"},
    ),
]
TopicPrefix = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        extra={"says": "one topic level of letters, digits, _ and -"},
    ),
]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One table of the file."""


class Gateway(_Table, frozen=True, kw_only=True):
    """Who this gateway is and what it does.

    Attributes:
        id: thing name; stands in every topic and payload.
        data_dir: folder of journal, counters, cache, locks and control socket; made with mode 0700.
        timezone: IANA name of the civil time: midnight reads, daily figures.
        roles: what this process does.
        system_title: our 8 octets in hex, half of every GCM nonce, never shared by two gateways; "" = "ODC" and 5
            octets of SHA-256(id). A meter model may override it.
    """

    id: ThingName
    data_dir: FilePath = "/var/lib/opendcu"
    timezone: str = "UTC"
    roles: tuple[Role, ...] = ROLES
    system_title: SystemTitle = ""

    @property
    def title(self) -> bytes:
        """The 8 octets of our system title."""
        if self.system_title:
            return bytes.fromhex(self.system_title)
        return b"ODC" + hashlib.sha256(self.id.encode()).digest()[:5]


class Uplink(_Table, frozen=True, kw_only=True):
    """How messages reach the cloud.

    Attributes:
        kind: a plain MQTT broker, AWS IoT Core, the Greengrass IPC, or a directory of JSON documents.
        url: mqtt(s)://host:port; for `aws` the IoT endpoint; for `file` the directory; unused under `greengrass`.
        ca_file: root certificates, PEM; "" = the system's.
        cert_file: client certificate for mutual TLS, PEM.
        key_file: private key of the client certificate, PEM.
        username: for plain brokers; `file:<path>` or `env:<NAME>` read it from there.
        password: only a reference: `file:<path>` or `env:<NAME>`.
        alpn443: MQTT with client certificates through port 443.
        proxy: http://host:port of an HTTP proxy, or "".
        ack: what frees a row: the cloud's own acknowledgement, or only the broker's PUBACK.
        topic_prefix: first level of every topic.
        basic_ingest: volume data go through $aws/rules/<rule>/..., alarms never do.
        max_message_bytes: 0 = by kind: 4,800 under Greengrass, 100,000 else.
        max_in_flight: messages sent and not yet acknowledged by the broker; 0 = by kind: 2 on lite, 20 else.
        byte_budget_per_day: octets of payload a civil day; 0 = no budget. Alarms are never held back.
        defender_every: how often AWS IoT Device Defender gets our custom metrics (kinds aws and mqtt); 0 = never, else
            at least five minutes.
        configured_by: who may set some keys from the cloud (kinds aws and mqtt): an IoT job, the named shadow
            `opendcu`, or nobody.
    """

    kind: Literal["mqtt", "aws", "greengrass", "file"] = "mqtt"
    url: str = "mqtt://127.0.0.1:1883"
    ca_file: FilePath = ""
    cert_file: FilePath = ""
    key_file: FilePath = ""
    username: str = ""
    password: str = ""
    alpn443: bool = False
    proxy: str = ""
    ack: Literal["application", "broker"] = "application"
    topic_prefix: TopicPrefix = "dcu"
    basic_ingest: bool = False
    max_message_bytes: Annotated[int, msgspec.Meta(ge=0, le=128 << 10)] = 0
    max_in_flight: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    byte_budget_per_day: Size = Size(0)
    defender_every: Duration = Duration(0)
    configured_by: Literal["off", "job", "shadow"] = "off"


class Journal(_Table, frozen=True, kw_only=True):
    """The file that readings wait in until the cloud has them.

    Attributes:
        max_bytes: hard limit of the journal on disk.
        alarm_reserve_bytes: part of it that only alarms and midnights may use.
        keep_acked: how long acknowledged data stay for re-reads on the box, while room lasts.
        keep_long: the same for midnights and billing.
    """

    max_bytes: Size = Size(512 << 20)
    alarm_reserve_bytes: Size = Size(16 << 20)
    keep_acked: Duration = Duration(60 * 86400)
    keep_long: Duration = Duration(400 * 86400)


class Schedules(_Table, frozen=True, kw_only=True):
    """When meters are read: off, every <n>(s|min|h|d), or HH:MM in civil time.

    Attributes:
        interval_reads: how often load profiles are fetched, spread over the meters.
        midnight_reads: the daily profile.
        billing: the billing profile.
        events: the event logs.
        instantaneous: measured values of now.
        clock_check: the meter's clock against ours.
    """

    interval_reads: Schedule = Schedule("every 1h")
    midnight_reads: Schedule = Schedule("00:05")
    billing: Schedule = Schedule("every 1d")
    events: Schedule = Schedule("every 6h")
    instantaneous: Schedule = Schedule("off")
    clock_check: Schedule = Schedule("every 1d")


class ClockRules(_Table, frozen=True, kw_only=True):
    """What is done about meters whose clock is wrong.

    Attributes:
        set_meters: on = below 10 s leave, to 5 min set, 5 to 10 min set and alarm, beyond only alarm.
    """

    set_meters: Literal["off", "on"] = "off"


class Alarms(_Table, frozen=True, kw_only=True):
    """How alarms leave.

    Attributes:
        hold_off_s: a last gasp whose restore comes within this time is not sent; 0 = everything is sent at once.
        batch_ms: in a storm, alarms heard within this time share messages; the first one leaves alone.
        rules: file of local threshold rules; "" = none.
    """

    hold_off_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 0.0
    batch_ms: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 100
    rules: FilePath = ""


class Outage(_Table, frozen=True, kw_only=True):
    """When silence is inferred to be an outage.

    Attributes:
        group_share: share of the meters of a feeder or transformer that must be silent, above 0, at most 1.
        after_s: for so long, in seconds.
    """

    group_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.8
    after_s: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 120.0


class Power(_Table, frozen=True, kw_only=True):
    """Where the box learns that its own mains failed.

    Attributes:
        provider: none, a GPIO line, a file that holds 1 (mains) or 0 (battery), or a command that exits 0 or 1.
        source: gpio: `<chip>:<line>`, as in gpiochip0:17; file: its path; command: its path; "" with none.
    """

    provider: Literal["none", "gpio", "file", "command"] = "none"
    source: str = ""


class Commands(_Table, frozen=True, kw_only=True):
    """What the cloud may ask this gateway to do.

    Attributes:
        allow: commands that are run; others are refused.
        signers: Ed25519 public keys (64 hex digits) for the commands that need a signature.
    """

    allow: tuple[Command, ...] = ("read", "ping", "backfill", "park", "unpark")
    signers: tuple[
        Annotated[
            str,
            msgspec.Meta(pattern="^[0-9A-Fa-f]{64}$", extra={"says": "32 octets as 64 hex digits"}),
        ],
        ...,
    ] = ()


class Health(_Table, frozen=True, kw_only=True):
    """How often the box reports on itself.

    Attributes:
        every: 0 = every minute, every 15 minutes under Greengrass lite.
    """

    every: Duration = Duration(0)

    def every_s(self, *, lite: bool = False) -> float:
        """Seconds between health messages."""
        return float(self.every) or (900.0 if lite else 60.0)


class Logs(_Table, frozen=True, kw_only=True):
    """What is logged; the environment variable OPENDCU_LOG goes before.

    Attributes:
        level: debug, info, warning or error.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"


class Line(_Table, frozen=True, kw_only=True):
    """What meters share: one bus, one modem, one radio, one subnet.

    Attributes:
        id: its name in meters, logs and metrics.
        transport: tcp, udp or serial.
        framing: wrapper and hdlc are DLMS; modbus-tcp and modbus-rtu (also in a TCP stream) are Modbus.
        concurrency: sessions at the same time; 0 = 200, on a serial line always 1. From 4 on, meters that were called and do
            not answer wait beyond this number, as many again at most, and meters that were silent before a quarter of it:
            each holds a socket and nothing else, and the others need not wait for it.
        address: host:port that all meters of the line stand behind, if they give only their unit or HDLC address.
        device: serial device; /dev/serial/by-path/... survives replugging.
        baudrate: bits per second of a serial line.
        parity: E, O or N.
        stopbits: 1, or 2 for 8N2.
        echo: the line returns what we send (two-wire adapters, optical heads).
        turnaround_ms: pause before we send after the line fell silent, beyond what the framing demands.
        mode_e: begin with the IEC 62056-21 mode E sign-on.
        timeout_s: longest wait for an answer in seconds; 0 = by transport, speed and length.
    """

    id: MeterId
    transport: Transport
    framing: Framing
    concurrency: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 0
    address: str = ""
    device: str = ""
    baudrate: Annotated[int, msgspec.Meta(ge=300, le=4_000_000)] = 9600
    parity: Literal["E", "O", "N"] = "E"
    stopbits: Literal[1, 2] = 1
    echo: bool = False
    turnaround_ms: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 0
    mode_e: bool = False
    timeout_s: Annotated[float, msgspec.Meta(ge=0, le=300)] = 0.0

    def __post_init__(self) -> None:
        if not self.concurrency:
            msgspec.structs.force_setattr(
                self, "concurrency", 1 if self.transport == "serial" else 200
            )

    @property
    def protocol(self) -> Literal["dlms", "modbus"]:
        """What is spoken on it."""
        return "modbus" if self.framing.startswith("modbus") else "dlms"


class Fleet(_Table, frozen=True, kw_only=True):
    """Meters as the utility exports them.

    Attributes:
        file: CSV (UTF-8, RFC 4180) whose header holds the keys of [[meters]]; blank = default; "" = none.
    """

    file: FilePath = ""


class Meter(_Table, frozen=True, kw_only=True):
    """One meter.

    Attributes:
        id: the utility's meter number; the identity everywhere.
        line: id of its line.
        model: a meter model (`opendcu model list`) or the path of one.
        address: host:port; Modbus host:port/unit or unit; HDLC logical.physical, with host:port/ before it in TCP.
        serial: expected device serial: another one is WrongMeter; "" = any.
        title: its system title in hex, if pushes come before the first association.
        client: DLMS client SAP; 0 = the model's.
        security: authentication mechanism; "" = the model's.
        multiplier: CT ratio times PT ratio: carried as a check, only the cloud's meter master scales.
        phase: L1, L2, L3 or a combination; for outage sense.
        feeder: name of its feeder; for outage sense.
        transformer: name of its transformer; for outage sense, and for the energy balance: the meter whose id is that
            name measures the transformer.
    """

    id: MeterId
    line: str
    model: str
    address: str
    serial: str = ""
    title: SystemTitle = ""
    client: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    security: Security = ""
    multiplier: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] = 1
    phase: Annotated[
        str, msgspec.Meta(pattern=r"^(L[123]([, ]?L[123]){0,2})?$", extra={"says": "L1, L2, L3"})
    ] = ""
    feeder: str = ""
    transformer: str = ""


class Keys(_Table, frozen=True, kw_only=True):
    """Where the keys of the meters come from; never the keys themselves.

    Attributes:
        provider: file, environment (OPENDCU_KEY_<METER>_<GUEK|GAK|PASSWORD|HLS|MASTER>), a command that prints one
            TOML or JSON table of a meter, a file sealed under a key of systemd-creds or a TPM (the default of our
            Greengrass components), or a secret of AWS with the text of a keys file.
        file: TOML with one table per meter: guek, gak, password, hls, master, sign, agree, meter_sign, meter_agree; mode
            0600 or refused. With sealed: what `opendcu keys seal` wrote.
        command: program and arguments; the meter's id is appended.
        kek: where the key of a sealed file is: `creds:<path>` (systemd-creds: TPM or host key), `secret:<id>` (AWS),
            `file:<path>` (insecure: a copy of the disk has both); "" = the systemd credential opendcu-kek, else
            opendcu-kek.cred or opendcu-kek beside the file.
        secret: name or ARN of the secret; from Greengrass' Secret Manager (classic), else from Secrets Manager with
            the credentials of the token exchange.
    """

    provider: Literal["file", "env", "command", "sealed", "secret"] = "file"
    file: FilePath = "keys.toml"
    command: tuple[str, ...] = ()
    kek: Annotated[
        str,
        msgspec.Meta(
            pattern="^((creds|secret|file):.+)?$",
            extra={"says": '"", creds:<path>, secret:<id> or file:<path>'},
        ),
    ] = ""
    secret: str = ""


class Push(_Table, frozen=True, kw_only=True):
    """Where data-notifications and last gasps are heard.

    Attributes:
        listen: udp://host:port and tcp://host:port; IPv6 in brackets.
    """

    listen: tuple[str, ...] = ("udp://0.0.0.0:4059", "tcp://0.0.0.0:4059")


class Detector(_Table, frozen=True, kw_only=True):
    """What looks for anomalies.

    Attributes:
        model: builtin, or the path of a directory with model.onnx, model.json and model.sig.
        shadow: path of another such directory, which scores beside it: its findings are marked, nobody is sent out.
        false_alarms: per meter-month, those that this site accepts; picks the threshold out of the model's.
    """

    model: str = "builtin"
    shadow: str = ""
    false_alarms: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.03


class Console(_Table, frozen=True, kw_only=True):
    """The local web page.

    Attributes:
        listen: host:port; anything but loopback needs a token.
        token: `file:<path>` or `env:<NAME>`; "" = none.
    """

    listen: str = "127.0.0.1:8480"
    token: str = ""


class Config(_Table, frozen=True, kw_only=True):
    """A whole configuration that can start.

    Attributes:
        file: the gateway.toml it came from, absolute.
        lines: by id.
        meters: by id, those of the fleet file among them, in the order of the files.
        models: by the name that meters use.
        warnings: keys that this release does not know, if it was loaded all the same.
    """

    gateway: Gateway
    uplink: Uplink = Uplink()
    journal: Journal = Journal()
    schedule: Schedules = Schedules()
    clock: ClockRules = ClockRules()
    alarms: Alarms = Alarms()
    outage: Outage = Outage()
    power: Power = Power()
    commands: Commands = Commands()
    health: Health = Health()
    logs: Logs = Logs()
    fleet: Fleet = Fleet()
    keys: Keys = Keys()
    push: Push = Push()
    detector: Detector = Detector()
    console: Console = Console()
    lines: dict[str, Line] = {}
    meters: dict[str, Meter] = {}
    models: dict[str, DlmsModel | ModbusModel] = {}
    file: Path = Path("gateway.toml")
    warnings: tuple[str, ...] = ()

    @property
    def data_dir(self) -> Path:
        """The data directory."""
        return Path(self.gateway.data_dir)

    def address_of(self, meter: Meter) -> Address:
        """Where the meter answers."""
        line = self.lines[meter.line]
        return parse_address(
            meter.address, transport=line.transport, framing=line.framing, shared=line.address
        )


TABLES: dict[str, type[_Table]] = {
    "gateway": Gateway,
    "uplink": Uplink,
    "journal": Journal,
    "schedule": Schedules,
    "clock": ClockRules,
    "alarms": Alarms,
    "outage": Outage,
    "power": Power,
    "commands": Commands,
    "health": Health,
    "logs": Logs,
    "fleet": Fleet,
    "keys": Keys,
    "push": Push,
    "detector": Detector,
    "console": Console,
}
"""The single tables of the file; [[lines]] and [[meters]] are the lists beside them."""
