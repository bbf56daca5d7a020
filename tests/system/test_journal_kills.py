"""SIGKILL at random and at enumerated points: nothing acknowledged is missing, nothing is doubled, no counter is used twice.

Some hundred kills; `python -m tests.system.durability` makes as many as one likes.
"""

from pathlib import Path

import pytest

from tests.system import journal_kills

pytestmark = [pytest.mark.system, pytest.mark.slow]
OLD = Path(__file__).parents[1] / "data" / "journals" / "v001.db"


@pytest.fixture
def server():
    out = journal_kills.Server()
    yield out
    out.close()


@pytest.mark.timeout(120)
def test_kills_at_random_points(server, tmp_path):
    tally = journal_kills.random_kills(server, tmp_path, 120, seed=20251124)
    assert tally.kills == 120
    assert tally.rows > 1000
    assert tally.alarms > 50


@pytest.mark.timeout(120)
def test_kills_while_generations_retire(server, tmp_path):
    tally = journal_kills.random_kills(server, tmp_path, 30, seed=7, clock=journal_kills.fast())
    assert tally.rows > 200


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["trace", "ops", "late-trace", "late-ops"])
def test_kills_at_enumerated_points(server, tmp_path, kind):
    """Before each statement, and between the instructions of statements: of opening, then of committing."""
    points = {
        "trace": [*range(1, 130, 5), *range(130, 260, 20)],
        "ops": range(2, 1200, 48),
        "late-trace": range(1, 80, 2),
        "late-ops": range(1, 320, 11),
    }[kind]
    tally = journal_kills.enumerated_kills(server, tmp_path, kind, points)
    assert tally.kills == len(points)
    assert tally.rows or "late" not in kind


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("kind", "points"), [("trace", range(1, 90, 11)), ("ops", range(1, 600, 67))]
)
def test_kills_while_the_files_are_made(server, tmp_path, kind, points):
    tally = journal_kills.kills_while_the_files_are_made(server, tmp_path, kind, points)
    assert tally.kills == len(points)


@pytest.mark.timeout(120)
def test_kills_while_a_schema_is_migrated(server, tmp_path):
    tally = journal_kills.kills_while_migrating(server, tmp_path, range(8, 34, 2), OLD)
    assert tally.kills == 13
