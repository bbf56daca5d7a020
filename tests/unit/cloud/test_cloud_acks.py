"""Acknowledgements: exactly what was stored, each message small and complete in itself."""

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st
from opendcu_cloud.acks import MAX_ACK, acks, ranges

NUMBERS = st.lists(st.integers(0, 2**53 - 1) | st.integers(0, 60), max_size=300)


@given(NUMBERS)
def test_ranges_hold_exactly_the_numbers(numbers):
    found = ranges(numbers)
    assert sum(b - a + 1 for a, b in found) == len(set(numbers))
    assert all(any(a <= n <= b for a, b in found) for n in numbers)
    assert all(left[1] + 1 < right[0] for left, right in itertools.pairwise(found))


@given(
    NUMBERS,
    st.lists(
        st.tuples(st.integers(0, 2**53 - 1), st.just("schema-invalid"), st.text(max_size=400)),
        max_size=40,
    ),
)
def test_messages_are_small_and_say_everything_once(numbers, refused):
    high = max(numbers, default=0)
    messages = acks("dcu-0001", 1_764_000_000, numbers, refused, high)
    assert all(len(m) <= MAX_ACK for m in messages)
    documents = [json.loads(m) for m in messages]
    assert [r for d in documents for r in d["acked"]] == ranges(numbers)
    assert [r[0] for d in documents for r in d["rejected"]] == [r[0] for r in refused]
    assert all(
        (d["schema"], d["dcu"], d["epoch"], d["high"])
        == ("opendcu.ack/1", "dcu-0001", 1_764_000_000, high)
        for d in documents
    )
    assert bool(messages) == bool(numbers or refused)
    assert all(d["acked"] or d["rejected"] for d in documents)


def test_a_batch_is_one_message():
    assert len(acks("dcu-0001", 1, range(1000), [], 999)) == 1
    assert json.loads(acks("dcu-0001", 1, range(1000), [], 999)[0])["acked"] == [[0, 999]]


def test_numbers_with_gaps_are_split():
    messages = acks("dcu-0001", 1_764_000_000, range(0, 1000, 2), [], 998)
    assert len(messages) > 1
    assert sum(len(json.loads(m)["acked"]) for m in messages) == 500
