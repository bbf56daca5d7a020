"""One uplink.db per released schema, opened twice: nothing of it is lost, no number is used again."""

import shutil
from pathlib import Path

import pytest

from edge_core.clock import ManualClock
from edge_core.uplink.outbox import Outbox, Ref

KNOWN = Path(__file__).parents[2] / "data" / "journals"
EPOCH = 1_764_000_000


@pytest.mark.parametrize("name", sorted(p.name for p in KNOWN.glob("uplink-*.db")))
def test_every_schema_ever_released_opens_and_opens_again(tmp_path: Path, name: str) -> None:
    shutil.copy(KNOWN / name, tmp_path / "uplink.db")
    used = 2
    for _ in range(2):
        box = Outbox.open(tmp_path / "uplink.db", clock=ManualClock())
        try:
            assert not box.was_damaged
            assert not box.was_created
            assert box.epoch == EPOCH
            assert box.earlier == {1: (Ref("s", 1, 0, 12, 12),), 2: (Ref("s", 2, 0, 12, 12),)}
            assert box.acked == {("s", 2): (12, [(0, 5)])}
            assert {n: (row.refs[0].key, row.cause) for n, row in box.aside.items()} == {
                7: ("0123456789abcdef", "cloud-refused")
            }
            assert box.spent(20_000) == 4_711
            box.begin(EPOCH)
            n = box.take()
            assert n is not None
            assert n > used
            used = n
        finally:
            box.close()
