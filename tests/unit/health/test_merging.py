"""What several processes say of themselves, as one document."""

from __future__ import annotations

from edge_core.health.merging import merged_figures, merged_health, merged_overview


def health(**more):
    return {
        "version": "1", "uptime_s": 10, "depth": 2, "hours_left": None, "memory_mb": 30,
        "meters": {"total": 3, "silent": 1, "parked": 0}, "clock": {"synced": True, "step_s": 0},
        "uplink": {"state": "off"},
    } | more  # fmt: skip


def test_sums_and_worst_cases_and_the_uplink_of_the_first():
    merged = merged_health([
        health(uplink={"state": "connected"}, uptime_s=7, nucleus="lite"),
        health(hours_left=40, clock={"synced": False, "step_s": -9}),
        health(hours_left=12, clock={"synced": True, "step_s": 4}),
    ])  # fmt: skip
    assert merged["uplink"] == {"state": "connected"}
    assert (merged["uptime_s"], merged["nucleus"]) == (7, "lite")
    assert (merged["depth"], merged["memory_mb"], merged["hours_left"]) == (6, 90, 12)
    assert merged["meters"] == {"total": 9, "silent": 3, "parked": 0}
    assert merged["clock"] == {"synced": False, "step_s": -9}


def test_one_process_is_told_as_it_is():
    assert merged_health([health()]) == health()


def test_overviews_add_up():
    journal = {"path": "a", "epoch": 5, "head": 3, "segments_waiting": 1, "hours_left": None,
               "full": False, "damaged": None}  # fmt: skip
    merged = merged_overview([
        health(roles=["uplink"], journal=journal, polling={}, pushes={}),
        health(roles=["dlms", "push"], journal=journal | {"segments_waiting": 4, "full": True, "hours_left": 3.0},
               polling={"visits": 5}, pushes={"heard": 2}),
        health(roles=["modbus"], journal=journal | {"damaged": "why"}, polling={"visits": 7}),
    ])  # fmt: skip
    assert merged["roles"] == ["uplink", "dlms", "push", "modbus"]
    assert merged["journal"] == journal | {
        "segments_waiting": 6, "full": True, "damaged": "why", "hours_left": 3.0,
    }  # fmt: skip
    assert merged["polling"] == {"visits": 12}
    assert merged["pushes"] == {"heard": 2}


def test_figures_of_a_day_are_summed_by_profile():
    def figures(profile, due, captured, missing, delivered=0, excused=0):
        return {"profile": profile, "due": due, "captured": captured, "delivered": delivered,
                "missing": missing, "excused": excused}  # fmt: skip

    documents = [
        {"day": "2026-11-24", "profiles": []},
        {"day": "2026-11-24", "profiles": [
            figures("1.0.99.1.0.255", 96, 90, {"line-silent": 6}, delivered=80),
            figures("1.0.98.2.0.255", 1, 1, {}),
        ]},
        {"day": "2026-11-24", "profiles": [
            figures("1.0.99.1.0.255", 96, 92, {"line-silent": 1, "key-rejected": 2}, excused=1),
        ]},
    ]  # fmt: skip
    merged = merged_figures(documents)
    assert merged["day"] == "2026-11-24"
    daily, interval = merged["profiles"]
    assert daily["due"] == 1
    assert interval == figures(
        "1.0.99.1.0.255", 192, 182, {"key-rejected": 2, "line-silent": 7}, delivered=80, excused=1
    )
    assert documents[1]["profiles"][0]["missing"] == {"line-silent": 6}  # left as they were
