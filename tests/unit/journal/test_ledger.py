import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_core.domain import Block, Column, Flag, Layout, as_list
from edge_core.journal import book, ledger
from edge_core.journal.ledger import Entry
from edge_core.journal.records import Hole

PROFILE = "1.0.99.1.0.255"
P = 900
T0 = 1_764_000_000 // P * P
LAYOUT = Layout(PROFILE, P, (Column("1.0.1.8.0.255", "Wh", 0), Column("1.0.3.8.0.255", "varh", 0)))
EVENTS = Layout("0.0.99.98.0.255", 0, (Column("0.0.96.11.0.255", "", 0),))


def block(times, values=None, *, layout=LAYOUT, occ=(), flags=()):
    """Rows at T0 + time * period; values default to the time, a number is one value for both columns."""
    scale = layout.period or 1
    stamps = [T0 + t * scale for t in times]
    values = list(times) if values is None else list(values)
    columns = tuple(list(values) for _ in layout.cols)
    return Block(
        meter="m",
        device="d",
        kind="interval",
        layout=layout,
        times=stamps,
        columns=columns,
        occ=tuple(occ),
        flags=tuple(flags),
    )


def absorb(entry, *args, **kwargs):
    b = block(*args, **kwargs)
    out = entry.absorb(b)
    kept = out.of(b)
    return out, ([] if kept is None else rows_of(kept))


def rows_of(b):
    occ = dict(b.occ)
    scale = b.layout.period or 1
    return [
        ((t - T0) // scale, occ.get(i, 0), as_list(b.columns[0])[i])
        for i, t in enumerate(as_list(b.times))
    ]


def test_first_rows_are_new_and_the_block_is_kept_as_it_is():
    entry = Entry("interval")
    b = block(range(4))
    out = entry.absorb(b)
    assert out.of(b) is b
    assert (out.known, out.conflicts) == (0, 0)
    assert entry.runs == [(T0, T0 + 3 * P, P)]
    assert entry.watermark == T0 + 3 * P


def test_an_overlapping_read_brings_only_what_is_new():
    entry = Entry("interval")
    absorb(entry, range(4))
    out, rows = absorb(entry, range(2, 7))
    assert [r[0] for r in rows] == [4, 5, 6]
    assert out.known == 2
    assert entry.runs == [(T0, T0 + 6 * P, P)]
    assert entry.captured == 7


def test_the_same_read_twice_brings_nothing():
    entry = Entry("interval")
    absorb(entry, range(96))
    out, rows = absorb(entry, range(96))
    assert rows == []
    assert out.of(block(range(96))) is None
    assert out.known == 96


def test_a_backfill_arrives_after_newer_rows():
    entry = Entry("interval")
    absorb(entry, range(10, 14))
    _, rows = absorb(entry, range(4, 12))
    assert [r[0] for r in rows] == [4, 5, 6, 7, 8, 9]
    assert entry.runs == [(T0 + 4 * P, T0 + 13 * P, P)]
    assert entry.watermark == T0 + 13 * P
    _, rows = absorb(entry, range(4, 12))
    assert rows == []


def test_a_gap_is_a_hole_with_the_cause_that_was_noted():
    entry = Entry("interval")
    absorb(entry, range(4))
    absorb(entry, range(8, 10))
    assert entry.holes() == (Hole(T0 + 4 * P, T0 + 7 * P, 4, ""),)
    entry.note_gap(T0 + 4 * P, T0 + 5 * P, "line-silent")
    assert entry.holes() == (
        Hole(T0 + 4 * P, T0 + 5 * P, 2, "line-silent"),
        Hole(T0 + 6 * P, T0 + 7 * P, 2, ""),
    )
    entry.note_gap(T0 + 5 * P, T0 + 20 * P, "overwritten")
    view = entry.view("m", "d", PROFILE)
    assert view.holes == (
        Hole(T0 + 4 * P, T0 + 4 * P, 1, "line-silent"),
        Hole(T0 + 5 * P, T0 + 7 * P, 3, "overwritten"),
        Hole(T0 + 9 * P + 1, T0 + 20 * P, 11, "overwritten"),
    )
    assert (view.captured, view.due) == (6, 6 + 4 + 11)
    absorb(entry, range(4, 8))
    assert [h.first for h in entry.holes()] == [T0 + 9 * P + 1]


def test_daylight_saving_makes_no_hole_in_a_daily_profile():
    entry = Entry("midnight")
    daily = Layout("1.0.98.2.0.255", 86_400, LAYOUT.cols)
    days = [T0, T0 + 86_400, T0 + 86_400 + 90_000, T0 + 86_400 + 90_000 + 86_400]
    b = Block(
        meter="m", device="d", kind="midnight", layout=daily, times=days, columns=([1] * 4, [1] * 4)
    )
    entry.absorb(b)
    assert entry.holes() == ()
    assert entry.captured == 4


def test_other_values_under_a_known_identity_are_a_conflict_once():
    entry = Entry("interval")
    absorb(entry, range(4))
    out, rows = absorb(entry, range(2, 5), [2, 99, 4])
    assert rows == [(3, 0, 99), (4, 0, 4)]
    assert (out.known, out.conflicts) == (1, 1)
    out, rows = absorb(entry, range(2, 5), [2, 99, 4])
    assert rows == []
    assert entry.conflicts == 1
    assert entry.captured == 5


def test_a_layout_change_is_a_conflict_even_if_the_numbers_are_the_same():
    entry = Entry("interval")
    absorb(entry, range(4))
    scaled = Layout(PROFILE, P, (LAYOUT.cols[0], Column("1.0.3.8.0.255", "varh", 1)))
    out, rows = absorb(entry, range(2, 4), layout=scaled)
    assert out.conflicts == 2
    assert len(rows) == 2


def test_a_forgotten_hash_is_no_conflict():
    entry = Entry("interval")
    absorb(entry, range(96))
    out, rows = absorb(entry, range(4), [7, 7, 7, 7])
    assert rows == []
    assert out.known == 4


def test_the_first_sample_wins():
    entry = Entry("interval")
    absorb(entry, [0, 1])
    out, rows = absorb(entry, [1, 2], [55, 66], flags=[(0, 2, int(Flag.SAMPLED))])
    assert rows == [(2, 0, 66)]
    assert (out.known, out.conflicts) == (1, 0)


def test_the_watermark_goes_where_it_is_told_and_never_back():
    entry = Entry("interval")
    entry.absorb(block(range(4)), T0 + P)
    assert entry.watermark == T0 + P
    entry.absorb(block(range(2)))
    assert entry.watermark == T0 + P
    entry.absorb(block([]), T0 + 9 * P)
    assert entry.watermark == T0 + 9 * P


def test_events_within_one_second_are_told_apart_by_occurrence():
    entry = Entry("events")
    _, rows = absorb(entry, [5, 5, 5], [1, 2, 1], layout=EVENTS, occ=[(1, 1), (2, 2)])
    assert rows == [(5, 0, 1), (5, 1, 2), (5, 2, 1)]
    _, rows = absorb(
        entry, [5, 5, 5, 5, 9], [1, 2, 1, 2, 3], layout=EVENTS, occ=[(1, 1), (2, 2), (3, 3)]
    )
    assert rows == [(5, 3, 2), (9, 0, 3)]
    _, rows = absorb(entry, [9, 9], [3, 3], layout=EVENTS, occ=[(1, 1)])
    assert rows == [(9, 1, 3)]


def test_irregular_times_are_bounded_and_the_oldest_forgotten_is_delivered_again():
    entry = Entry("events")
    many = ledger.KEEP_TIMES + 40
    absorb(entry, range(many), layout=EVENTS)
    assert len(entry.times) == ledger.KEEP_TIMES
    _, rows = absorb(entry, range(many), layout=EVENTS)
    assert [r[0] for r in rows] == list(range(40))


def test_runs_are_bounded_and_what_is_forgotten_stays_counted():
    entry = Entry("interval")
    for i in range(2 * ledger.MAX_RUNS):
        absorb(entry, [2 * i])
        if i and i % 3 == 0:
            entry.note_gap(T0 + (2 * i - 1) * P, T0 + (2 * i - 1) * P, "meter-power-off")
    assert len(entry.runs) <= ledger.MAX_RUNS
    view = entry.view("m", "d", PROFILE)
    assert view.captured == 2 * ledger.MAX_RUNS
    assert view.due == 4 * ledger.MAX_RUNS - 1
    named = (2 * ledger.MAX_RUNS - 1) // 3
    assert counts(entry) == {"meter-power-off": named, "": 2 * ledger.MAX_RUNS - 1 - named}
    # a forgotten row is delivered again, and counted no second time
    _, rows = absorb(entry, [0])
    assert rows == [(0, 0, 0)]
    assert entry.view("m", "d", PROFILE).due == view.due


def counts(entry):
    """Missing rows by cause."""
    found = {}
    for hole in entry.holes():
        if hole.merged or hole.first >= T0:
            found[hole.cause] = found.get(hole.cause, 0) + hole.rows
    return {cause: n for cause, n in found.items() if n}


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["rows", "rows", "rows", "name", "name", "fill", "back", "forget"]),
        st.integers(1, 6),
        st.integers(0, 5),
        st.sampled_from(["line-silent", "no-such-row", "meter-power-off"]),
    ),
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(ACTS)
def test_counts_and_causes_are_exact_however_much_is_merged(acts):
    """Against a book that forgets nothing: a set of rows and a cause for each time."""
    limits = ledger.MAX_RUNS, ledger.MAX_GAPS, ledger.TIDY_GAPS
    ledger.MAX_RUNS, ledger.MAX_GAPS, ledger.TIDY_GAPS = 6, 5, 2
    try:
        entry, known, causes = Entry("interval"), {0}, {}
        absorb(entry, [0])
        end = 0
        for act, length, skip, cause in acts:
            floor = (entry.merged_to - T0) // P + 1 if entry.merged_to else 0
            first = max(floor, end - skip * 3)
            if act == "rows":
                first = end + skip + 1
                absorb(entry, range(first, first + length))
                known |= set(range(first, first + length))
                end = first + length - 1
            elif act == "back" and first < end:
                new = list(range(first, min(first + length, end)))
                absorb(entry, new)
                known |= set(new)
            elif act == "forget" and (gone := [t for t in range(first, end) if t in known and t]):
                gone = gone[:1]
                entry.forget(block(gone), cause)
                known -= set(gone)
                causes |= dict.fromkeys(gone, cause)
            elif act in ("name", "fill"):
                span = range(max(1, first), max(1, first) + length)
                entry.note_gap(
                    T0 + span[0] * P, T0 + span[-1] * P, cause, over=None if act == "name" else ""
                )
                for t in span:
                    causes[t] = cause if act == "name" else causes.get(t, cause)
        wanted = {}
        for t in range(end):
            if t not in known:
                wanted[causes.get(t, "")] = wanted.get(causes.get(t, ""), 0) + 1
        beyond = [t for t in causes if t > end]
        for t in beyond:
            wanted[causes[t]] = wanted.get(causes[t], 0) + 1
        assert entry.captured == len(known)
        assert counts(entry) == wanted
        view = entry.view("m", "d", PROFILE)
        assert view.due == view.captured + sum(hole.rows for hole in view.holes)
        assert len(entry.runs) <= 7
        assert len(entry.gaps) <= 7
    finally:
        ledger.MAX_RUNS, ledger.MAX_GAPS, ledger.TIDY_GAPS = limits


def test_a_word_may_be_for_what_nobody_named_or_for_what_was_named_so():
    entry = Entry("interval")
    absorb(entry, [0, 10])
    entry.note_gap(T0 + 3 * P, T0 + 4 * P, "line-silent")
    entry.note_gap(T0 + P, T0 + 9 * P, "gateway-off", over="")
    assert [(h.rows, h.cause) for h in entry.holes()] == [
        (2, "gateway-off"),
        (2, "line-silent"),
        (5, "gateway-off"),
    ]
    entry.note_gap(T0 + 2 * P, T0 + 6 * P, "meter-power-off", over="gateway-off")
    assert [(h.rows, h.cause) for h in entry.holes()] == [
        (1, "gateway-off"),
        (1, "meter-power-off"),
        (2, "line-silent"),
        (2, "meter-power-off"),
        (3, "gateway-off"),
    ]


@pytest.mark.parametrize("lengths", [[1] * 40, [3, 200, 40_000] * 20, [2] * 9])
def test_runs_are_kept_in_short_and_come_back(lengths):
    entry, at = Entry("interval"), 0
    for length in lengths:
        absorb(entry, range(at, at + min(length, 300)))
        at += length + 300
    before = msgspec.msgpack.encode(entry)
    short, hashes = book._pack(entry)
    assert msgspec.msgpack.encode(entry) == before
    assert len(short) < len(before) * 0.6
    assert msgspec.msgpack.encode(book._unpack((short, hashes))) == before


def test_a_year_with_a_gap_a_day_is_small():
    """A few megabytes for 5,000 meters."""
    entry, at = Entry("interval"), 0
    for day in range(365):
        absorb(entry, range(at, at + 90 + day % 5))
        entry.note_gap(T0 + (at + 90) * P, T0 + (at + 102) * P, "meter-power-off", over="")
        at += 96 + day % 7
    octets, hashes = book._pack(entry)
    assert len(entry.runs) == 365
    assert len(octets) + len(hashes) < 1200


def test_rows_given_up_are_missing_again():
    entry = Entry("interval")
    absorb(entry, range(8))
    gone = block(range(2, 5))
    entry.forget(gone, "journal-full")
    assert entry.holes() == (Hole(T0 + 2 * P, T0 + 4 * P, 3, "journal-full"),)
    assert entry.captured == 5
    _, rows = absorb(entry, range(8))
    assert [r[0] for r in rows] == [2, 3, 4]


def test_arrays_and_lists_have_the_same_hash():
    a = block(range(40))
    b = msgspec.structs.replace(a, columns=tuple(np.array(c, np.int64) for c in a.columns))
    hashes = ledger.row_hashes(a, range(40))
    assert hashes == ledger.row_hashes(b, range(40))
    assert ledger.row_hashes(a, [3, 4, 17]) == [hashes[3], hashes[4], hashes[17]]
    assert ledger.row_hashes(block([1], [None]), [0]) != ledger.row_hashes(block([1], [0]), [0])


# ---- a clock that is set back ------------------------------------------------------------------


def test_rows_after_a_step_back_are_new_occurrences_though_the_block_begins_between():
    entry = Entry("interval")
    absorb(entry, range(10))
    # by entry, from the last proven row on: the rows 5 to 8 before the step are not in this block
    _, rows = absorb(entry, [9, 5, 6, 7], [9, 50, 60, 70])
    assert rows == [(5, 1, 50), (6, 1, 60), (7, 1, 70)]
    _, rows = absorb(entry, [9, 5, 6, 7, 8], [9, 50, 60, 70, 80])
    assert rows == [(8, 1, 80)]
    _, rows = absorb(
        entry, [7, 8, 9, 7, 8, 9, 10], [7, 8, 9, 70, 80, 90, 10], occ=[(3, 1), (4, 1), (5, 1)]
    )
    assert rows == [(9, 1, 90), (10, 0, 10)]


def test_a_second_pass_without_any_consumption_is_still_new():
    entry = Entry("interval")
    absorb(entry, range(10), [7] * 10)
    _, rows = absorb(entry, [9, 5, 6], [7, 7, 7])
    assert rows == [(5, 1, 7), (6, 1, 7)]
    _, rows = absorb(entry, [9, 5, 6], [7, 7, 7])
    assert rows == []


def test_a_range_read_shows_only_part_of_a_known_step():
    entry = Entry("interval")
    absorb(entry, range(10))
    absorb(entry, [9, 5, 6, 7, 8, 9], [9, 50, 60, 70, 80, 90], occ=[(5, 1)])
    _, rows = absorb(entry, [8, 9, 8, 9, 10], [8, 9, 80, 90, 10], occ=[(2, 1), (3, 1)])
    assert rows == [(10, 0, 10)]
    _, rows = absorb(entry, [8, 9, 10, 11], [80, 90, 10, 11])  # a meter that finds the last ones
    assert rows == [(11, 0, 11)]


def test_a_row_pushed_alone_after_a_step_back_heals_by_entry():
    entry = Entry("interval")
    absorb(entry, range(10))
    out, rows = absorb(entry, [8], [80])
    assert (rows, out.conflicts) == ([(8, 0, 80)], 1)
    out, rows = absorb(entry, [7, 8, 9, 8, 9], [7, 8, 9, 80, 90], occ=[(3, 1), (4, 1)])
    assert rows == [(8, 0, 8), (8, 1, 80), (9, 1, 90)]
    assert out.conflicts == 1


def test_the_next_row_of_a_second_pass_may_be_pushed_alone():
    entry = Entry("interval")
    absorb(entry, range(10))
    absorb(entry, [9, 5, 6], [9, 50, 60])
    out, rows = absorb(entry, [7], [70])
    assert (rows, out.conflicts) == ([(7, 1, 70)], 0)
    _, rows = absorb(entry, [6, 7, 8], [60, 70, 80])
    assert rows == [(8, 1, 80)]


def test_a_second_pass_over_forgotten_hashes_is_new():
    entry = Entry("interval")
    absorb(entry, range(100))
    absorb(entry, [99, 4, 5], [99, 40, 50])
    entry = msgspec.msgpack.decode(msgspec.msgpack.encode(entry), type=Entry)
    _, rows = absorb(entry, [5, 6, 7], [50, 60, 70])
    assert rows == [(6, 1, 60), (7, 1, 70)]
    _, rows = absorb(entry, [99, 4, 5, 6, 7, 8], [99, 40, 50, 60, 70, 80])
    assert rows == [(8, 1, 80)]


class Meter:
    """A buffer that grows at its end, by a clock that can be set."""

    def __init__(self):
        self.rows = []  # (time, value)
        self.clock = 0

    def capture(self, count, same):
        for _ in range(count):
            self.rows.append((self.clock, 7 if same else 1000 + len(self.rows)))
            self.clock += 1

    def truth(self):
        seen, out = {}, {}
        for time, value in self.rows:
            k = seen.get(time, -1) + 1
            seen[time] = k
            out[time, k] = value
        return out

    def read(self, indices):
        """As the driver gives it: occurrences numbered over what was read."""
        seen, occ, times, values = {}, [], [], []
        for i, index in enumerate(indices):
            time, value = self.rows[index]
            k = seen.get(time, -1) + 1
            seen[time] = k
            if k:
                occ.append((i, k))
            times.append(time)
            values.append(value)
        return times, values, occ


class Lake:
    def __init__(self):
        self.current = {}
        self.deliveries = 0

    def take(self, rows):
        for time, k, value in rows:
            self.current[time, k] = value
            self.deliveries += 1


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("capture"), st.integers(1, 8), st.booleans()),
        st.tuples(st.just("step"), st.integers(-12, 6), st.just(0)),
        st.tuples(st.just("read"), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("restart"), st.just(0), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=120, deadline=None)
@given(ACTIONS)
@example([("capture", 8, True), ("read", 0, False), ("step", -3, 0), ("capture", 2, True)])
def test_a_careful_reader_delivers_each_row_exactly_once(actions):
    """Range reads while the clock was left alone, by entry from the last proven row after it was set."""
    if sum(what == "step" for what, _, _ in actions) > 1:  # see the limits of the ledger
        actions = [(what, n, False) for what, n, _ in actions]
    meter, lake, entry = Meter(), Lake(), Entry("interval")
    read_to = 0
    for what, n, flag in [*actions, ("read", 0, False)]:
        if what == "capture":
            meter.capture(n, flag)
        elif what == "step":
            meter.clock = max(0, meter.clock + n)
        elif what == "restart":
            entry = msgspec.msgpack.decode(msgspec.msgpack.encode(entry), type=Entry)
        elif meter.rows:
            since = max(0, read_to - 1 - n)
            times, values, occ = meter.read(range(since, len(meter.rows)))
            out, rows = absorb(entry, times, values, occ=occ)
            assert out.conflicts == 0
            lake.take(rows)
            read_to = len(meter.rows)
    assert lake.current == meter.truth()
    assert lake.deliveries == len(meter.rows)
    assert entry.captured == len(meter.rows)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(ACTIONS)
def test_a_careless_reader_ends_with_the_truth_after_reading_by_entry(actions):
    """Range reads although the clock was set back (all rows of the range, as meters do), every row with its own value."""
    meter, lake, entry = Meter(), Lake(), Entry("interval")
    for what, n, _ in actions:
        if what == "capture":
            meter.capture(n, False)
        elif what == "step":
            meter.clock = max(0, meter.clock + min(n, 0))
        elif what == "read" and meter.rows:
            mark = (entry.watermark - T0) // P if entry.watermark is not None else 0
            some = [i for i, (t, _) in enumerate(meter.rows) if t >= mark - 2 - n]
            times, values, occ = meter.read(some)
            lake.take(absorb(entry, times, values, occ=occ)[1])
    if meter.rows:
        times, values, occ = meter.read(range(len(meter.rows)))
        lake.take(absorb(entry, times, values, occ=occ)[1])
    truth = meter.truth()
    assert {k: v for k, v in lake.current.items() if k in truth} == truth


@pytest.mark.xfail(
    strict=True,
    reason="a limit of the ledger: rows of a second step, read alone, are laid on the first's",
)
def test_a_careless_reader_after_two_steps_over_one_time():
    """Found by chance: the row of the third pass (1006) becomes a conflict of the second's instead of occurrence 2."""
    test_a_careless_reader_ends_with_the_truth_after_reading_by_entry.hypothesis.inner_test(
        [
            ("capture", 4, False),
            ("step", -4, 0),
            ("capture", 1, False),
            ("read", 0, False),
            ("capture", 1, False),
            ("read", 0, False),
            ("step", -1, 0),
            ("capture", 1, False),
        ]
    )


@pytest.mark.parametrize("count", [1, 5, 200])
def test_an_entry_survives_its_encoding(count):
    entry = Entry("interval")
    for i in range(count):
        absorb(entry, [3 * i, 3 * i + 1])
    entry.note_gap(T0, T0 + 5, "link")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(entry), type=Entry) == entry
