"""Identity: whatever arrives in whatever order, as often as it likes, the table ends up saying the same."""

import itertools
import json

from hypothesis import given, settings
from hypothesis import strategies as st
from opendcu_cloud import rows
from opendcu_cloud.envelope import open_message

H0 = 1_764_000_000  # 2025-11-24T16:00:00Z


def message(blocks, layouts=None, kind="interval", n=1):
    layouts = layouts or [
        {"profile": "1.0.99.1.0.255", "period": 900, "cols": [["1.0.1.29.0.255", "Wh", 0]]}
    ]
    body = {
        "schema": "opendcu.reads/1", "dcu": "dcu-0001", "epoch": 1, "n": n, "sent": H0, "kind": kind,
        "layouts": layouts, "blocks": blocks,
    }  # fmt: skip
    return open_message(f"dcu/dcu-0001/reads/{kind}", json.dumps(body).encode())


def block(times, values, read_at=H0, **more):
    return {
        "meter": "m", "device": "d", "layout": 0, "t": list(times), "rows": len(times), "values": values,
        "tz": 330, "read_at": read_at,
    } | more  # fmt: skip


class MemoryTable:
    """What the table does with an update: sets what is not there, says what was there before."""

    def __init__(self):
        self.items = {}
        self.conflicts = []

    def add(self, a_message):
        for item in rows.merge(rows.hour_items(a_message, 45, 400)):
            stored = self.items.setdefault((item.pk, item.sk), {})
            old = dict(stored)
            for name, text in rows.attributes(item).items():
                stored.setdefault(name, text)
            further, conflicts = rows.compare(item, old)
            for name, text in further.items():
                stored.setdefault(name, text)
            self.conflicts += conflicts

    def readings(self):
        return {
            (key, identity): reading.says
            for key, item in self.items.items()
            for identity, reading in rows.readings(item).items()
        }


def test_items_are_civil_hours():
    # India is 5 h 30 min ahead: the civil hour 21 of 2025-11-24 ends at 16:30 UTC; a row belongs to the hour it ends
    half_past = H0 + 1800
    items = list(
        rows.hour_items(
            message([block([half_past - 900, half_past, half_past + 900], [[1, 2, 3]])]), 45, 400
        )
    )
    assert [i.sk for i in items] == [
        "interval#2025-11-24T21#1.0.99.1.0.255",
        "interval#2025-11-24T22#1.0.99.1.0.255",
    ]
    assert [len(i.rows) for i in items] == [2, 1]
    assert {i.pk for i in items} == {"M#m"}


def test_time_to_live():
    (item,) = rows.hour_items(message([block([H0], [[1]])]), 45, 400)
    assert item.ttl == H0 + 45 * 86_400
    (item,) = rows.hour_items(message([block([H0], [[1]])], kind="midnight"), 45, 400)
    assert item.ttl == H0 + 400 * 86_400


def test_a_duplicate_changes_nothing():
    table = MemoryTable()
    table.add(message([block([H0], [[5]])]))
    before = json.dumps(sorted((k[1], v) for k, v in table.items.items()))
    table.add(message([block([H0], [[5]])], n=2))
    assert json.dumps(sorted((k[1], v) for k, v in table.items.items())) == before
    assert table.conflicts == []


def test_the_later_read_is_current_and_the_conflict_is_named():
    for order in itertools.permutations([(5, 100), (6, 200)]):
        table = MemoryTable()
        for value, read_at in order:
            table.add(message([block([H0], [[value]], read_at=read_at)]))
        ((_, says),) = table.readings().items()
        assert says == (6, 0, "Wh")
        assert len(table.conflicts) == 1
        assert {table.conflicts[0].stored.value, table.conflicts[0].arrived.value} == {5, 6}


def test_a_value_read_again_later_wins_over_another_in_between():
    for order in itertools.permutations([(5, 100), (6, 200), (5, 300)]):
        table = MemoryTable()
        for value, read_at in order:
            table.add(message([block([H0], [[value]], read_at=read_at)]))
        ((_, says),) = table.readings().items()
        assert says[0] == 5, order


def test_null_is_no_reading():
    layouts = [
        {
            "profile": "1.0.99.1.0.255",
            "period": 900,
            "cols": [["1.0.1.29.0.255", "Wh", 0], ["1.0.2.29.0.255", "Wh", 0]],
        }
    ]
    for order in ([0, 1], [1, 0]):
        table = MemoryTable()
        parts = [
            message([block([H0], [[7], [None]], 100)], layouts),
            message([block([H0], [[None], [8]], 200)], layouts),
        ]
        for i in order:
            table.add(parts[i])
        assert sorted(says[0] for says in table.readings().values()) == [7, 8]
        assert table.conflicts == []


def test_another_scaler_is_another_value():
    table = MemoryTable()
    for scaler, read_at in ((0, 100), (1, 200)):
        layouts = [
            {"profile": "1.0.99.1.0.255", "period": 900, "cols": [["1.0.1.29.0.255", "Wh", scaler]]}
        ]
        table.add(message([block([H0], [[5]], read_at)], layouts))
    ((_, says),) = table.readings().items()
    assert says == (5, 1, "Wh")
    assert len(table.conflicts) == 1


def test_occurrences_and_devices_are_apart():
    table = MemoryTable()
    table.add(message([block([H0, H0], [[1, 2]], occ=[[1, 1]]), block([H0], [[3]], device="e")]))
    assert sorted(says[0] for says in table.readings().values()) == [1, 2, 3]
    assert table.conflicts == []


def test_long_hours_are_split_into_updates_that_fit():
    times = [H0 + 10 * i for i in range(1, 361)]
    items = rows.merge(rows.hour_items(message([block(times, [list(range(360))])]), 45, 400))
    assert all(len(i.rows) <= rows.MAX_ROWS_PER_UPDATE for i in items)
    assert sum(len(i.rows) for i in items) == 360


ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 5),  # quarter of an hour
        st.integers(0, 1),  # occurrence
        st.sampled_from(["d", "e"]),
        st.integers(0, 2) | st.none(),  # value
        st.integers(0, 3),  # read_at
        st.sampled_from([0, 1]),  # scaler, thereby layout
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=300)
@given(ARRIVALS, st.randoms(use_true_random=False))
def test_order_and_repetition_do_not_matter(arrivals, rng):
    def play(sequence):
        table = MemoryTable()
        for quarter, occurrence, device, value, read_at, scaler in sequence:
            layouts = [
                {
                    "profile": "1.0.99.1.0.255",
                    "period": 900,
                    "cols": [["1.0.1.29.0.255", "Wh", scaler]],
                }
            ]
            at = H0 + 900 * quarter
            times, values, occ = (
                ([at, at], [[99, value]], [[1, 1]]) if occurrence else ([at], [[value]], [])
            )
            table.add(
                message([block(times, values, 1000 + read_at, device=device, occ=occ)], layouts)
            )
        return table.readings()

    expected = {}
    for quarter, occurrence, device, value, read_at, scaler in arrivals:
        cells = [(0, 99), (1, value)] if occurrence else [(0, value)]
        for occ, v in cells:
            if v is not None:
                rank = (1000 + read_at, json.dumps([v, scaler, "Wh"], separators=(",", ":")))
                key = (H0 + 900 * quarter, occ, device)
                if key not in expected or rank > expected[key][0]:
                    expected[key] = (rank, (v, scaler, "Wh"))
    shuffled = list(arrivals) + rng.choices(arrivals, k=3)
    rng.shuffle(shuffled)
    for sequence in (arrivals, shuffled):
        found = {(i.at, i.occurrence, i.device): says for (_, i), says in play(sequence).items()}
        assert found == {key: says for key, (_, says) in expected.items()}


def test_only_what_lies_inside_a_long_block_is_taken_for_new():
    long = rows.merge(
        rows.hour_items(message([block([H0 + 900 * i for i in range(96)], [[1] * 96])]), 45, 400)
    )
    inner, others = rows.inner_hours(long)
    assert len(inner) + len(others) == len(long)
    assert sorted(i.sk for i in others) == [min(i.sk for i in long), max(i.sk for i in long)]
    poll = rows.merge(
        rows.hour_items(message([block([H0 + 900 * i for i in range(4)], [[1] * 4])]), 45, 400)
    )
    assert rows.inner_hours(poll) == ([], poll)
    twice = [*long, long[5]]
    assert long[5] not in rows.inner_hours(twice)[0]
