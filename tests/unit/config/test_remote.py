"""What the cloud may set: keys that cannot cut the way back, checked with the file, kept for the next start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_core.config import remote
from edge_core.config.tables import ConfigErrors

DOCUMENT = {"schema": remote.SCHEMA, "set": {"alarms.batch_ms": 250.0, "schedule.events": "off"}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text('[gateway]\nid = "dcu-1"\ndata_dir = "data"\n[alarms]\nbatch_ms = 100\n')
    (tmp_path / "data").mkdir()
    return path


def test_what_is_kept_goes_before_the_file_at_the_next_start(file: Path) -> None:
    wanted = remote.set_of(DOCUMENT)
    config = remote.load_with(file, wanted)
    assert (config.alarms.batch_ms, str(config.schedule.events)) == (250, "off")
    assert remote.load_kept(file).alarms.batch_ms == 100
    remote.keep(config, wanted)
    assert remote.load_kept(file).alarms.batch_ms == 250
    assert (config.data_dir / remote.FILE).stat().st_mode & 0o777 == 0o600


def test_a_file_that_does_not_go_with_it_any_more_holds_alone(file: Path) -> None:
    config = remote.load_kept(file)
    remote.keep(config, {"journal.alarm_reserve_bytes": "16 MiB"})
    assert remote.load_kept(file).journal.alarm_reserve_bytes == 16 << 20
    file.write_text(
        file.read_text() + '[journal]\nmax_bytes = "20 MiB"\nalarm_reserve_bytes = "1 MiB"\n'
    )
    assert remote.load_kept(file).journal.alarm_reserve_bytes == 1 << 20
    (config.data_dir / remote.FILE).write_text("[1]")
    assert remote.kept(config) == {}


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ([], "is no JSON object"),
        ({"set": {}}, "schema: is not opendcu.configuration/1"),
        ({"schema": remote.SCHEMA}, "set: is no map"),
        ({"schema": remote.SCHEMA, "set": {}, "more": 1}, "more: unknown member"),
        ({"schema": remote.SCHEMA, "set": {"gateway.id": "x"}}, "gateway.id: may not be set"),
        (
            {"schema": remote.SCHEMA, "set": {"keys.provider": "env"}},
            "keys.provider: may not be set",
        ),
        ({"schema": remote.SCHEMA, "set": {"alarms.rules": "/etc/x"}}, "alarms.rules: may not"),
        ({"schema": remote.SCHEMA, "set": {"alarms.batch_ms": [1]}}, "is no text, number"),
        ({"schema": remote.SCHEMA, "set": {"logs.level": "x" * 300}}, "is no text, number"),
        ({"schema": remote.SCHEMA, "set": {"alarm.batch_ms": 1}}, "did you mean"),
        ({"schema": remote.SCHEMA, "set": {f"logs.{i}": 1 for i in range(101)}}, "at most 100"),
    ],
)
def test_a_bad_document_is_refused_with_its_reasons(document: Any, told: str) -> None:
    with pytest.raises(ConfigErrors, match=told):
        remote.set_of(document)
