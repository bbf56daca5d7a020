"""Counters, gauges and their Prometheus text."""

from __future__ import annotations

import os
import re
import threading

import pytest

from edge_core.health.metrics import MAX_SERIES, REGISTRY, Registry, memory_mb


def test_counters_and_gauges() -> None:
    registry = Registry()
    rows = registry.counter("opendcu_journal_rows_total", "Rows.", ("lane",))
    rows.inc("live")
    rows.inc("live", by=4)
    rows.inc("backlog")
    depth = registry.gauge("opendcu_journal_depth_rows", "Depth.")
    depth.set(7)
    assert rows.value("live") == 5
    assert rows.value("never") == 0
    assert depth.value() == 7
    assert registry.counter("opendcu_journal_rows_total", "Rows.", ("lane",)) is rows
    assert registry.snapshot() == {
        "opendcu_journal_depth_rows": 7,
        'opendcu_journal_rows_total{lane="backlog"}': 1,
        'opendcu_journal_rows_total{lane="live"}': 5,
    }


def test_the_text() -> None:
    registry = Registry()
    registry.counter("opendcu_x_y_total", "What\nit \\ is.", ("a", "b")).inc('q"', "n\n\\", by=2)
    registry.gauge("opendcu_x_share_ratio", "Share.").set(0.25)
    assert registry.text() == (
        "# HELP opendcu_x_share_ratio Share.\n# TYPE opendcu_x_share_ratio gauge\nopendcu_x_share_ratio 0.25\n"
        "# HELP opendcu_x_y_total What\\nit \\\\ is.\n# TYPE opendcu_x_y_total counter\n"
        'opendcu_x_y_total{a="q\\"",b="n\\n\\\\"} 2\n'
    )


def test_gauges_that_are_asked() -> None:
    registry = Registry()
    depth = [3]
    registry.gauge("opendcu_a_b", "x").watch(lambda: depth[0])
    registry.gauge("opendcu_a_c", "x", ("line",)).watch(lambda: {("f1",): 1.0})
    depth[0] = 9
    assert registry.snapshot() == {"opendcu_a_b": 9, 'opendcu_a_c{line="f1"}': 1.0}


def test_misuse() -> None:
    registry = Registry()
    rows = registry.counter("opendcu_a_b_total", "x", ("line",))
    with pytest.raises(ValueError, match="only rises"):
        rows.inc("l", by=-1)
    with pytest.raises(ValueError, match="has the labels"):
        rows.inc()
    with pytest.raises(ValueError, match="another metric"):
        registry.gauge("opendcu_a_b_total", "x", ("line",))
    with pytest.raises(ValueError, match="another metric"):
        registry.counter("opendcu_a_b_total", "x", ("other",))
    with pytest.raises(ValueError, match="ends in _total"):
        registry.counter("opendcu_a_b", "x")
    with pytest.raises(ValueError, match="is no opendcu_"):
        registry.gauge("rows", "x")


def test_labels_are_bounded() -> None:
    rows = Registry().counter("opendcu_a_b_total", "x", ("line",))
    for number in range(MAX_SERIES + 50):
        rows.inc(f"line-{number}")
    assert len(rows.series()) == MAX_SERIES + 1
    assert rows.value("other") == 50
    rows.inc("line-0")
    assert rows.value("line-0") == 2


def test_threads_lose_no_count() -> None:
    rows = Registry().counter("opendcu_a_b_total", "x")

    def count() -> None:
        for _ in range(5000):
            rows.inc()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows.value() == 20_000


def test_memory_of_processes() -> None:
    assert memory_mb() > 5
    assert memory_mb(os.getpid()) > 5
    assert memory_mb(2**30) == 0.0
    match = re.search(r"^opendcu_process_memory_bytes (\d+)", REGISTRY.text(), re.MULTILINE)
    assert match
    assert int(match[1]) > 5_000_000
