"""The identification of IEC 62056-21 names a speed, or is refused."""

import pytest

from edge_core.acquisition.drivers.dlms.mode_e import speed_of
from edge_core.errors import MalformedFrame


@pytest.mark.parametrize(
    ("octets", "speed"),
    [
        (b"/LGZ5E450\r\n", "5"),
        (b"\x00/ISk6\\2MT382\r\n", "6"),
        (bytes(b | 0x80 for b in b"/LGZ0X\r\n"), "0"),
    ],
)
def test_speed(octets: bytes, speed: str) -> None:
    assert speed_of(octets) == speed


@pytest.mark.parametrize("octets", [b"", b"\r\n", b"/LG\n", b"/LGZ9\r\n", b"hello\r\n", bytes(20)])
def test_what_is_no_identification(octets: bytes) -> None:
    with pytest.raises(MalformedFrame):
        speed_of(octets)
