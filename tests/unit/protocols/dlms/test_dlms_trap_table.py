"""Every test that docs/reference/dlms-traps.md names is there."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[3]
PAGE = TESTS.parent / "docs" / "reference" / "dlms-traps.md"


def test_every_trap_has_its_tests() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    rows = [line for line in rows if not line.startswith("| trap ")]
    assert len(rows) > 60
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", row)
        assert named, row
        for path, name in named:
            text = (TESTS / path).read_text()
            assert not name or re.search(rf"^(?:async )?def {name}\(", text, re.MULTILINE), row
