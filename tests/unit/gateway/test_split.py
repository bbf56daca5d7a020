"""Which files a process has, how much of the journal's room, and what tells its counters of a restored copy."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_core.config.load import load
from edge_core.config.schema import ROLES
from edge_core.gateway.split import epoch_of, joint_epoch, name_of, share_of
from edge_core.gateway.wires import owner_of
from edge_core.journal.datadir import DataDirectory

CONFIG = """
[gateway]
id = "dcu-1"
data_dir = "data"

[journal]
max_bytes = "64 MiB"

[push]
listen = ["udp://127.0.0.1:0"]

[[lines]]
id = "feeder-1"
transport = "tcp"
framing = "wrapper"

[[lines]]
id = "bus-1"
transport = "tcp"
framing = "modbus-tcp"

[[meters]]
id = "GP1"
line = "feeder-1"
model = "is15959-3ph"
address = "127.0.0.1:4059"

[[meters]]
id = "MB1"
line = "bus-1"
model = "eastron-sdm630"
address = "127.0.0.1:502/1"
"""


@pytest.mark.parametrize(
    ("roles", "name"),
    [
        (ROLES, ""),
        (["uplink", "console"], ""),
        (["dlms", "uplink"], ""),
        (["push", "dlms"], "dlms"),
        (["modbus"], "modbus"),
        (["console", "detector"], "detector"),
    ],
)
def test_the_uplink_has_the_names_without_a_role(roles, name):
    assert name_of(roles) == name
    assert owner_of(DataDirectory("/d").journal(name).name) == (name or None)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("split") / "gateway.toml"
    path.write_text(CONFIG)
    return load(path, strict=False)


@given(st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_the_shares_of_all_processes_are_the_journals_room_give_or_take_an_eighth(config, places):
    """However six roles are dealt to at most four processes."""
    processes = [
        [role for role, place in zip(ROLES, places, strict=True) if place == n] for n in range(4)
    ]
    shares = [share_of(config, roles) for roles in processes if roles]
    whole = int(config.journal.max_bytes)
    assert whole * 7 // 8 <= sum(shares) <= whole * 9 // 8
    assert all(share >= whole // 16 for share in shares)


def test_one_process_has_it_all(config):
    assert share_of(config, ROLES) == 64 << 20
    assert share_of(config, ["dlms", "modbus", "push", "uplink"]) == 64 << 20


def test_counters_learn_of_either_epoch():
    epochs = {joint_epoch(own, uplink) for own in (0, 5, 6) for uplink in (0, 5, 6)}
    assert len(epochs) == 9
    assert joint_epoch(1 << 31, 1 << 31) < 1 << 63
    assert epoch_of(Path("/nowhere/uplink.db")) == 0


def test_who_associates_has_counters_db():
    directory = DataDirectory("/d")
    assert directory.counters_of(["dlms", "push"]) == directory.counters
    assert directory.counters_of(["push"]).name == "counters-push.db"
