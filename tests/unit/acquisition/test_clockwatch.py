"""Our own clock: drift is no step, a step is seen once, what it jumped over is explained."""

from edge_core.acquisition.clockwatch import ClockWatch

T0 = 1_764_000_000.0


def test_drift_and_scaled_time_are_no_steps():
    watch = ClockWatch(T0, 0.0, 240.0, valid=True)
    for second in range(1, 600):
        assert watch.look(T0 + second * 240 + second * 0.01, float(second), valid=True) == 0
    assert not watch.explains(T0 + 1000)


def test_a_step_ahead_is_told_once_and_explains_what_it_jumped_over():
    watch = ClockWatch(T0, 0.0, 1.0, valid=True)
    assert watch.look(T0 + 3601, 1.0, valid=True) == 3600
    assert watch.look(T0 + 3602, 2.0, valid=True) == 0
    assert watch.last_step_s == 3600
    assert watch.explains(T0 + 1800)
    assert not watch.explains(T0 - 1)
    assert not watch.explains(T0 + 3700)


def test_a_step_back_is_told_and_loses_nothing():
    watch = ClockWatch(T0, 0.0, 1.0, valid=True)
    assert watch.look(T0 - 99, 1.0, valid=True) == -100
    assert watch.lost == []


def test_what_was_passed_without_a_clock_is_explained_and_is_no_step():
    watch = ClockWatch(0.0, 0.0, 1.0, valid=False)
    assert watch.look(10.0, 10.0, valid=False) == 0
    assert watch.look(T0, 1000.0, valid=True) == 0
    assert watch.explains(T0 - 900)
    assert not watch.explains(T0 - 1100)
