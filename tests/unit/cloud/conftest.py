"""The functions are no installed package: AWS unpacks them, and so do these tests."""

import sys
from pathlib import Path

import pytest

FUNCTIONS = Path(__file__).resolve().parents[3] / "cloud" / "functions"
sys.path.insert(0, str(FUNCTIONS))

LAYOUT = {
    "profile": "1.0.99.1.0.255",
    "period": 900,
    "cols": [["1.0.1.29.0.255", "Wh", 0], ["1.0.12.27.0.255", "V", -1]],
}
BLOCK = {
    "meter": "GP1000001",
    "device": "12345678",
    "layout": 0,
    "t0": 1_763_999_100,
    "rows": 4,
    "values": [[1, 2, 3, 4], [2301, None, 2303, 2304]],
    "tz": 330,
    "read_at": 1_764_001_200,
}
ENVELOPE = {
    "schema": "opendcu.reads/1",
    "dcu": "dcu-0001",
    "epoch": 1_764_000_000,
    "n": 1234,
    "sent": 1_764_001_234,
    "kind": "interval",
    "layouts": [LAYOUT],
    "blocks": [BLOCK],
}


@pytest.fixture
def envelope():
    """A message of reads as DESIGN section 6 shows it, to be changed at will."""
    import copy

    return copy.deepcopy(ENVELOPE)
