"""Power cuts at enumerated points: the disk keeps what was synced, and of the rest whatever it likes (power_cuts.py).

Acknowledgements up to the cut must hold. `python -m tests.system.durability` makes thousands of cuts.
"""

import pytest

from tests.conftest import program
from tests.system import power_cuts
from tests.system.journal_kills import fast

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    return power_cuts.build_shim(program("cc", "gcc libc6-dev"), tmp_path_factory.mktemp("shim"))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", [1, 2])
def test_power_cuts_lose_nothing_acknowledged(shim, tmp_path, seed):
    tally = power_cuts.power_cuts(shim, tmp_path, seed, clock="-" if seed == 1 else fast())
    assert tally.kills == tally.checks == 60
    assert tally.rows > 100
    assert tally.alarms > 5
