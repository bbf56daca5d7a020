"""Salvaging reads any octets or skips them, and what it reads of a sound file is what SQLite reads."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from edge_core.journal import opening, store
from edge_core.journal.salvage import DamagedFile

COLUMNS = {2, 3, 4, 6, 8, 9}


def read(path):
    old = DamagedFile(path)
    try:
        return list(old.rows(COLUMNS))
    finally:
        old.close()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_octets_are_read_or_skipped(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("s") / "journal.db"
    pages = []
    for _ in range(data.draw(st.integers(0, 6))):
        start = data.draw(
            st.sampled_from([b"", b"\x0d", b"\x0d\0\0\0\x05\0\0", b"\x0d\0\0\xff\xff"])
        )
        body = start + data.draw(st.binary(max_size=400))
        pages.append(body.ljust(1024, data.draw(st.sampled_from([b"\0", b"\xff", b"\x08"]))))
    path.write_bytes(b"".join(pages)[: data.draw(st.integers(0, 8000))])
    if data.draw(st.booleans()):
        path.with_name("journal.db-wal").write_bytes(data.draw(st.binary(max_size=3000)))
    for _, row in read(path):
        assert len(row) in COLUMNS


def test_a_sound_file_is_read_as_sqlite_reads_it(tmp_path):
    path = tmp_path / "journal.db"
    db = store.connect(path)
    store.migrate(db, opening.schemas())
    rng = random.Random(3)
    for i in range(300):
        body = rng.randbytes(rng.choice((10, 900, 2500, 9000)))
        row = (i, 0, "interval", 1, rng.choice((0, 1, -5, 2**40)), i, 1, None, body)
        db.execute("INSERT INTO seg3 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        db.execute("INSERT INTO meter VALUES (?, ?)", (i * 2**33 - 2**40, f"Zähler {i}"))
        if i == 150:
            db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    db.execute("DELETE FROM seg3 WHERE id BETWEEN 40 AND 90")
    rows = read(path)  # the rest still stands in the WAL
    segments = {(rowid, *row[1:]) for rowid, row in rows if len(row) == 9}
    meters = {(rowid, row[1]) for rowid, row in rows if len(row) == 2 and isinstance(row[1], str)}
    assert segments == set(db.execute("SELECT * FROM seg3"))
    assert meters == set(db.execute("SELECT * FROM meter"))
    db.close()
