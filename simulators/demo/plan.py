"""Which fault happens when: the demo's own programme, or the one of the command line."""

from __future__ import annotations

from dataclasses import dataclass

FAULTS = (
    "uplink-cut",
    "kill-gateway",
    "gasp-storm",
    "meter-silent",
    "garbage",
    "wrong-key",
    "disk-full",
    "clock-jump",
    "power-cut",
)
"""Names of DESIGN section 4."""

OWN = (  # share of the run, fault, share of the run that it lasts
    (0.14, "meter-silent", 0.14),
    (0.22, "uplink-cut", 0.16),
    (0.30, "gasp-storm", 0.02),
    (0.46, "garbage", 0.10),
    (0.58, "kill-gateway", 0.02),
    (0.74, "gasp-storm", 0.02),
)
LASTS_S = {
    "uplink-cut": 8.0,
    "kill-gateway": 1.0,
    "gasp-storm": 1.0,
    "meter-silent": 8.0,
    "garbage": 6.0,
    "wrong-key": 6.0,
    "disk-full": 6.0,
    "clock-jump": 0.0,
    "power-cut": 5.0,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: begins `at_s` real seconds after the start, lasts `for_s`."""

    what: str
    at_s: float
    for_s: float


def own_programme(run_s: float) -> list[Fault]:
    """What the demo plays without --fault, fitted into the run."""
    return [
        Fault(what, round(share * run_s, 1), round(max(0.5, lasts * run_s), 1))
        for share, what, lasts in OWN
    ]


def parse(text: str) -> Fault:
    """`NAME@T` or `NAME@T/FOR`, seconds.

    Raises:
        ValueError: with what is allowed.
    """
    name, at, when = text.partition("@")
    begin, _, lasts = when.partition("/")
    if name not in FAULTS or not at:
        raise ValueError(f"{text!r}: write NAME@SECONDS with one of {', '.join(FAULTS)}")
    try:
        at_s = float(begin.removesuffix("s"))
        for_s = float(lasts.removesuffix("s")) if lasts else LASTS_S[name]
    except ValueError:
        raise ValueError(f"{text!r}: {when!r} are no seconds") from None
    if at_s < 0 or for_s < 0:
        raise ValueError(f"{text!r}: seconds are not negative")
    return Fault(name, at_s, for_s)
