"""gateway.toml and the fleet file: what is right is read, what is wrong is said, all at once."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edge_core.config import schema
from edge_core.config.load import ConfigErrors, load, with_roles
from edge_core.config.tables import MAX_MISTAKES
from edge_core.config.values import Address

MODBUS_MODEL = """
schema = "opendcu.model/1"
[model]
maker = "Test"
families = ["T1"]
protocol = "modbus"
source = ["this test"]
[link]
transports = ["tcp", "rtu"]
[[points]]
name = "voltage_l1"
obis = "1.0.32.7.0.255"
address = 0
type = "float32"
unit = "V"
"""
DLMS_MODEL = """
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
[profiles.interval]
obis = "1.0.99.1.0.255"
"""
LINE = '[[lines]]\nid = "feeder-1"\ntransport = "tcp"\nframing = "wrapper"\n'
METER = '[[meters]]\nid = "m1"\nline = "feeder-1"\nmodel = "./d.toml"\naddress = "10.1.0.11:4059"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "m.toml").write_text(MODBUS_MODEL)
    (tmp_path / "d.toml").write_text(DLMS_MODEL)
    return tmp_path


def write(
    folder: Path, text: str, *, gateway: str = '[gateway]\nid = "dcu-1"\ndata_dir = "data"\n'
) -> Path:
    path = folder / "gateway.toml"
    path.write_text(gateway + text)
    return path


def mistakes(path: Path) -> list[tuple[str, str, str]]:
    """(table, key, problem and hint) of each mistake."""
    with pytest.raises(ConfigErrors) as refusal:
        load(path, environment={})
    return [(e.table, e.key, f"{e.problem} | {e.hint}") for e in refusal.value.errors]


def test_the_smallest_configuration_has_every_default_of_the_contract(folder: Path) -> None:
    config = load(write(folder, "", gateway='[gateway]\nid = "dcu-0001"\n'), environment={})
    assert config.gateway.data_dir == "/var/lib/opendcu"
    assert config.gateway.roles == ("dlms", "modbus", "push", "detector", "uplink", "console")
    assert config.uplink.kind == "mqtt"
    assert config.uplink.url == "mqtt://127.0.0.1:1883"
    assert config.uplink.ack == "application"
    assert config.uplink.topic_prefix == "dcu"
    assert (config.journal.max_bytes, config.journal.alarm_reserve_bytes) == (512 << 20, 16 << 20)
    assert (config.journal.keep_acked, config.journal.keep_long) == (60 * 86400, 400 * 86400)
    assert config.schedule.interval_reads.every_s == 3600
    assert config.schedule.midnight_reads.at_s == 300
    assert config.schedule.instantaneous.off
    assert config.clock.set_meters == "off"
    assert (config.alarms.hold_off_s, config.alarms.batch_ms) == (0, 100)
    assert (config.outage.group_share, config.outage.after_s) == (0.8, 120)
    assert config.commands.allow == ("read", "ping", "backfill", "park", "unpark")
    assert (config.health.every_s(), config.health.every_s(lite=True)) == (60, 900)
    assert config.push.listen == ("udp://0.0.0.0:4059", "tcp://0.0.0.0:4059")
    assert config.console.listen == "127.0.0.1:8480"
    assert config.keys.file == str(folder / "keys.toml")
    assert config.detector.model == "builtin"


def test_system_title_comes_from_the_id_unless_it_is_given(folder: Path) -> None:
    derived = load(
        write(folder, "", gateway='[gateway]\nid = "dcu-0001"\n'), environment={}
    ).gateway.title
    # printf dcu-0001 | sha256sum
    assert derived == b"ODC" + bytes.fromhex("d980042a23")
    other = load(
        write(folder, "", gateway='[gateway]\nid = "dcu-0002"\n'), environment={}
    ).gateway.title
    assert other != derived
    given = write(folder, "", gateway='[gateway]\nid = "a"\nsystem_title = "4f44430102030405"\n')
    assert load(given, environment={}).gateway.title == bytes.fromhex("4f44430102030405")


def test_lines_meters_and_paths(folder: Path) -> None:
    config = load(
        write(
            folder,
            LINE
            + METER
            + '[[lines]]\nid = "bus"\ntransport = "serial"\nframing = "modbus-rtu"\ndevice = "pty"\nparity = "N"\nstopbits = 2\n'
            + '[[meters]]\nid = "m2"\nline = "bus"\nmodel = "./m.toml"\naddress = "7"\n'
            + '[uplink]\nkind = "file"\nurl = "out"\npassword = "file:secret"\n',
        ),
        environment={},
    )
    assert config.data_dir == folder / "data"
    assert config.uplink.url == str(folder / "out")
    assert config.uplink.password == f"file:{folder / 'secret'}"
    assert config.lines["bus"].device == str(folder / "pty")
    assert (config.lines["bus"].concurrency, config.lines["feeder-1"].concurrency) == (1, 200)
    assert (config.lines["bus"].protocol, config.lines["feeder-1"].protocol) == ("modbus", "dlms")
    assert config.address_of(config.meters["m1"]) == Address("10.1.0.11", 4059, logical=1)
    assert config.address_of(config.meters["m2"]) == Address(unit=7)
    assert config.models["./m.toml"].about.maker == "Test"


def test_the_environment_names_another_data_directory(folder: Path) -> None:
    config = load(write(folder, ""), environment={"OPENDCU_DATA_DIR": "/elsewhere"})
    assert config.data_dir == Path("/elsewhere")


def test_every_mistake_comes_at_once_with_table_key_and_hint(folder: Path) -> None:
    path = write(
        folder,
        """
rols = []
timezone = "Asia/Kolkatta"
[uplnk]
kind = "mqtt"
[uplink]
kind = "mqt"
max_in_flight = "many"
max_message_bytes = -1
[schedule]
events = "every 6 m"
[journal]
max_bytes = "512 MIB"
[[lines]]
id = "s"
transport = "serial"
framing = "wrapper"
concurrency = 3
[[lines]]
id = "feeder-1"
transport = "tcp"
framing = "wrapper"
device = "/dev/ttyS0"
[[lines]]
transport = "tcp"
framing = "wraper"
[[meters]]
id = "m1"
line = "feder-1"
model = "./d.toml"
address = "10.1.0.11:4059"
[[meters]]
id = "m 2"
line = "feeder-1"
model = "./d.toml"
multiplier = 0
""",
    )
    found = mistakes(path)
    places = {(table, key): text for table, key, text in found}
    assert 'did you mean "roles"' in places["gateway", "rols"]
    assert 'did you mean "Asia/Kolkata"' in places["gateway", "timezone"]
    assert 'did you mean "uplink"' in places["uplnk", ""]
    assert 'did you mean "mqtt"' in places["uplink", "kind"]
    assert 'expected int, got str: "many"' in places["uplink", "max_in_flight"]
    assert ">= 0" in places["uplink", "max_message_bytes"]
    assert "is no schedule" in places["schedule", "events"]
    assert "is no size" in places["journal", "max_bytes"]
    assert "does not run over serial" in places["lines[1] (s)", "framing"]
    assert "is missing" in places["lines[1] (s)", "device"]
    assert "one session" in places["lines[1] (s)", "concurrency"]
    assert "only for serial" in places["lines[2] (feeder-1)", "device"]
    assert "is missing" in places["lines[3]", "id"]
    assert 'did you mean "wrapper"' in places["lines[3]", "framing"]
    assert 'did you mean "feeder-1"' in places["meters[1] (m1)", "line"]
    assert "letters, digits" in places["meters[2] (m 2)", "id"]
    assert "is missing" in places["meters[2] (m 2)", "address"]
    assert ">= 1" in places["meters[2] (m 2)", "multiplier"]
    assert len(found) == len(places) == 18


def test_run_starts_with_keys_it_does_not_know_and_says_so(folder: Path) -> None:
    path = write(folder, 'colour = "blue"\n[hologram]\non = true\n')
    assert len(mistakes(path)) == 2
    config = load(path, strict=False, environment={})
    assert len(config.warnings) == 2
    assert any("colour" in w for w in config.warnings)
    assert any("hologram" in w for w in config.warnings)
    broken = write(folder, 'colour = "blue"\n[uplink]\nkind = 5\n')
    with pytest.raises(ConfigErrors) as refusal:
        load(broken, strict=False, environment={})
    assert [e.key for e in refusal.value.errors] == ["kind"]


@pytest.mark.parametrize(
    ("text", "table", "key", "says"),
    [
        (LINE + LINE, "lines[2] (feeder-1)", "id", "twice"),
        (LINE + METER + METER.replace("11:", "12:"), "meters[2] (m1)", "id", "twice"),
        (
            LINE + METER + METER.replace('"m1"', '"m2"'),
            "meters[2] (m2)",
            "address",
            "address of m1",
        ),
        (
            LINE + METER.replace("d.toml", "m.toml"),
            "meters[1] (m1)",
            "model",
            "speaks modbus, line feeder-1 is wrapper",
        ),
        (
            LINE + METER.replace("./d.toml", "nope-3ph"),
            "meters[1] (m1)",
            "model",
            "unknown meter model",
        ),
        (
            LINE + METER.replace("./d.toml", "./nope.toml"),
            "meters[1] (m1)",
            "model",
            "no such model file",
        ),
        (LINE + METER + 'title = "4c475a"\n', "meters[1] (m1)", "title", "16 hex digits"),
        (
            LINE
            + METER
            + 'title = "4c475a1022335566"\n'
            + METER.replace("m1", "m2").replace("11:", "12:")
            + 'title = "4C475A1022335566"\n',
            "meters[2] (m2)",
            "title",
            "system title of m1",
        ),
        (LINE + METER + 'address = "x"\n', "", "", "not TOML"),
        (
            '[uplink]\nkind = "aws"\nurl = "x.iot.example"\n',
            "uplink",
            "cert_file",
            "needs cert_file",
        ),
        ('[uplink]\ncert_file = "c"\n', "uplink", "key_file", "mutual TLS"),
        ('[uplink]\nurl = "127.0.0.1:1883"\n', "uplink", "url", "no scheme"),
        ('[uplink]\nurl = "http://127.0.0.1"\n', "uplink", "url", "cannot be used"),
        ('[uplink]\nurl = "mqtt://h:99999"\n', "uplink", "url", "wrong port"),
        ('[uplink]\nurl = "mqtt://me:hunter2@h"\n', "uplink", "url", "user name"),
        ('[uplink]\npassword = "hunter2"\n', "uplink", "password", "reference"),
        ("[uplink]\nalpn443 = true\n", "uplink", "alpn443", "needs cert_file"),
        ('[uplink]\nkind = "file"\nurl = "mqtt://h"\n', "uplink", "url", "no directory"),
        ('[console]\nlisten = "0.0.0.0:8480"\n', "console", "token", "not loopback"),
        ('[console]\ntoken = "abc"\n', "console", "token", "reference"),
        ('[console]\nlisten = "8480"\n', "console", "listen", "host:port"),
        ('[push]\nlisten = ["0.0.0.0:4059"]\n', "push", "listen", "no udp://"),
        ('[push]\nlisten = ["udp://0.0.0.0"]\n', "push", "listen", "host:port"),
        ('[keys]\nprovider = "command"\n', "keys", "command", "is missing"),
        ('[power]\nprovider = "gpio"\n', "power", "source", "is missing"),
        ('[commands]\nallow = ["reed"]\n', "commands", "allow", 'did you mean "read"'),
        ('[commands]\nsigners = ["abc"]\n', "commands", "signers", "64 hex digits"),
        ('[journal]\nmax_bytes = "16 MiB"\n', "journal", "alarm_reserve_bytes", "more than half"),
        ("[outage]\ngroup_share = 0\n", "outage", "group_share", "> 0"),
        ('[logs]\nlevel = "verbose"\n', "logs", "level", "none of"),
        ("meters = 5\n", "gateway", "meters", "unknown key"),
        ("uplink = 5\n", "gateway", "uplink", "unknown key"),
        ('[meters]\nid = "x"\n', "meters", "", "[[meters]]"),
        ('[[uplink]]\nkind = "mqtt"\n', "uplink", "", "expected a table"),
        ('[fleet]\nfile = "none.csv"\n', "fleet", "file", "no such file"),
    ],
)
def test_single_mistakes(folder: Path, text: str, table: str, key: str, says: str) -> None:
    found = mistakes(write(folder, text))
    assert any(t == table and k == key and says in text for t, k, text in found), found


def test_roles_and_gateway(folder: Path) -> None:
    found = mistakes(
        write(folder, "", gateway='[gateway]\nid = "a/b"\nroles = ["dlms", "dlms", "uplnk"]\n')
    )
    assert [(t, k) for t, k, _ in found] == [("gateway", "id"), ("gateway", "roles")]
    found = mistakes(write(folder, "", gateway='[gateway]\nid = "a"\nroles = ["dlms", "dlms"]\n'))
    assert "twice" in found[0][2]
    found = mistakes(write(folder, "", gateway='[gateway]\nid = "a"\nroles = []\n'))
    assert "at least one" in found[0][2]
    assert mistakes(write(folder, "", gateway="")) == [
        ("gateway", "", 'the table is missing | it needs at least id = "..."')
    ]


def test_other_roles_from_the_command_line(folder: Path) -> None:
    config = load(write(folder, ""), environment={})
    assert with_roles(config, ["uplink", "uplink"]).gateway.roles == ("uplink",)
    with pytest.raises(ConfigErrors, match="no such role"):
        with_roles(config, ["uplnk"])
    with pytest.raises(ConfigErrors, match="at least one"):
        with_roles(config, [])


@pytest.mark.parametrize(
    ("octets", "says"),
    [(b"[gateway\n", "not TOML"), (b"\xff", "not UTF-8"), (b"a = " + b"[" * 5000, "TOML|deeply")],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, octets: bytes, says: str) -> None:
    path = tmp_path / "gateway.toml"
    path.write_bytes(octets)
    with pytest.raises(ConfigErrors, match=says):
        load(path, environment={})
    with pytest.raises(ConfigErrors, match="no such file"):
        load(tmp_path / "none.toml", environment={})
    with pytest.raises(ConfigErrors, match="cannot be read"):
        load(tmp_path, environment={})


# The fleet file -------------------------------------------------------------------------------------------------------


def fleet(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    (folder / "meters.csv").write_bytes(text.encode(encoding))
    return write(folder, LINE + '[fleet]\nfile = "meters.csv"\n')


def test_a_fleet_of_the_utility(folder: Path) -> None:
    path = fleet(
        folder,
        "id,line,model,address,client,security,multiplier,feeder,transformer\r\n"
        'GP1,feeder-1,./d.toml,10.1.0.11:4059,48,hls5,40,"F 12, north","T ""7"""\r\n'
        "\r\n"
        "GP2,feeder-1,./d.toml,10.1.0.12:4059,,,,,\r\n",
        "utf-8-sig",
    )
    config = load(path, environment={})
    first, second = config.meters.values()
    assert (first.client, first.security, first.multiplier) == (48, "hls5", 40)
    assert (first.feeder, first.transformer) == ("F 12, north", 'T "7"')
    assert (second.client, second.security, second.multiplier, second.feeder) == (0, "", 1, "")


@pytest.mark.parametrize(
    ("text", "table", "key", "says"),
    [
        ("", "row 1", "", "header is missing"),
        ("id,line,model,adress\n", "row 1", "adress", 'did you mean "address"'),
        ("id,line,model,adress\n", "row 1", "address", "column is missing"),
        ("id;line;model;address\n", "row 1", "id;line;model;address", "by commas"),
        ("id,line,model,address,id\n", "row 1", "id", "twice"),
        (
            "id,line,model,address\nGP1,feeder-1,./d.toml\n",
            "row 2 (GP1)",
            "",
            "3 cells, the header has 4",
        ),
        (
            "id,line,model,address,client\nGP1,feeder-1,./d.toml,1.2.3.4:5,x\n",
            "row 2 (GP1)",
            "client",
            "expected int",
        ),
        (
            "id,line,model,address\nGP1,feeder-1,./d.toml,1.2.3.4\n",
            "row 2 (GP1)",
            "address",
            "no host",
        ),
        ("id,line,model,address\n,feeder-1,./d.toml,1.2.3.4:5\n", "row 2 ()", "id", "is missing"),
        ('id,line,model,address\nGP1,feeder-1,"./d.toml"x,1.2.3.4:5\n', "row 2", "", "not CSV"),
        (
            "id,line,model,address\nGP1,feeder-1,./d.toml,1.2.3.4:5\nGP1,feeder-1,./d.toml,1.2.3.5:5\n",
            "row 3 (GP1)",
            "id",
            "twice",
        ),
    ],
)
def test_mistakes_in_the_fleet(folder: Path, text: str, table: str, key: str, says: str) -> None:
    found = mistakes(fleet(folder, text))
    assert any(t == table and k == key and says in text for t, k, text in found), found


def test_a_fleet_in_another_encoding(folder: Path) -> None:
    (folder / "meters.csv").write_bytes("id,line,model,address\nZähler,x,y,z\n".encode("latin-1"))
    (_, _, text) = mistakes(write(folder, LINE + '[fleet]\nfile = "meters.csv"\n'))[0]
    assert "not UTF-8" in text


def test_one_wrong_column_of_five_thousand_meters_does_not_flood(
    folder: Path,
) -> None:
    rows = [
        f"GP{i:07},feeder-1,./d.toml,10.{i >> 8}.{i & 255}.1:4059,48,hls5,,L1" for i in range(5000)
    ]
    head = "id,line,model,address,client,security,multiplier,phase\n"
    path = fleet(folder, head + "\n".join(rows) + "\n")
    assert len(load(path, environment={}).meters) == 5000

    path = fleet(folder, head + "\n".join(row.replace("hls5", "hls9") for row in rows) + "\n")
    with pytest.raises(ConfigErrors) as refusal:
        load(path, environment={})
    assert len(refusal.value.errors) == MAX_MISTAKES
    assert refusal.value.left_out == 5000 - MAX_MISTAKES
    assert "and 4800 more" in str(refusal.value)


# The schema -----------------------------------------------------------------------------------------------------------


def test_every_key_is_described_in_its_docstring() -> None:
    """The reference page is written from these."""
    for name, cls in {**schema.TABLES, "lines": schema.Line, "meters": schema.Meter}.items():
        doc = cls.__doc__ or ""
        for f in msgspec.structs.fields(cls):
            assert f"\n        {f.encode_name}: " in doc, (
                f"[{name}] {f.encode_name} has no line in the docstring"
            )


def test_nothing_of_a_configuration_can_be_changed(folder: Path) -> None:
    config = load(write(folder, ""), environment={})
    with pytest.raises(AttributeError):
        config.gateway.id = "other"  # type: ignore[misc]
