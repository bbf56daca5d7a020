"""What happens to a gateway, one function per event: each logs and counts, always both.

ERROR: data are lost or a human is needed. WARNING: unexpected, and healed or being healed. INFO: a state changed.
DEBUG: per meter. The counter is `opendcu_gateway_events_total{event=...}`; the events page of the docs is written
from these functions. No argument is ever a key, a password or a decrypted APDU.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from edge_core.clock import SystemClock
from edge_core.health import metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_core.clock import Clock
    from edge_core.errors import MeterError

log = logging.getLogger("edge_core.events")

EVENTS = metrics.counter(
    "opendcu_gateway_events_total", "Events by code; see the events page.", ("event",)
)
LOST = metrics.counter(
    "opendcu_acquisition_lost_meters_total", "Meters that stopped answering, by error.", ("error",)
)

REFUSED = metrics.counter(
    "opendcu_acquisition_refused_answers_total",
    "Answers of meters that were not believed, by cause.",
    ("cause",),
)

SINGLE_LINES = 20
"""Events of meters within WINDOW_S that get a line each; more are summed up in one."""
WINDOW_S = 60.0


def _tell(code: str, level: int, text: str, **fields: Any) -> None:
    EVENTS.inc(code)
    log.log(level, text, extra={"code": code, **fields})


# The gateway ----------------------------------------------------------------------------------------------------------


def started(version: str, roles: Sequence[str], meters: int) -> None:
    """The gateway runs and polls."""
    _tell(
        "started",
        logging.INFO,
        f"OpenDCU {version} runs",
        version=version,
        roles=list(roles),
        meters=meters,
    )


def stopping(why: str) -> None:
    """The gateway was asked to stop: it flushes and closes."""
    _tell("stopping", logging.INFO, f"stopping: {why}", why=why)


def reloaded(changed: Sequence[str]) -> None:
    """The configuration was read again and is in use."""
    _tell("reloaded", logging.INFO, f"configuration reloaded: {', '.join(changed) or 'no change'}")


def reload_refused(mistakes: Sequence[str]) -> None:
    """The new configuration has mistakes; the old one stays in use."""
    _tell(
        "reload-refused",
        logging.ERROR,
        f"configuration not reloaded, {len(mistakes)} mistakes; the old one stays in use",
        mistakes=list(mistakes[:20]),
    )


def config_unknown_key(where: str) -> None:
    """A key of the configuration that this release does not know; it is ignored."""
    _tell("config-unknown-key", logging.WARNING, f"ignored: {where}")


def clock_invalid() -> None:
    """The system clock is not synchronised: nothing is stamped by it, and no due count rises."""
    _tell(
        "clock-invalid",
        logging.WARNING,
        "the clock is not synchronised: nothing is stamped until it is",
    )


def clock_valid() -> None:
    """The system clock is synchronised again."""
    _tell("clock-valid", logging.INFO, "the clock is synchronised again")


def loop_stalled(for_s: float, where: str) -> None:
    """The main loop did not turn for so long; `where` is the line it stands at."""
    _tell(
        "loop-stalled",
        logging.ERROR,
        f"the main loop stands still for {for_s:.1f} s at {where}",
        for_s=for_s,
    )


def console_off(listen: str, cause: str) -> None:
    """The console does not run; the gateway does."""
    _tell(
        "console-off",
        logging.WARNING,
        f"no console on {listen}: {cause}",
        listen=listen,
        cause=cause,
    )


# Meters ---------------------------------------------------------------------------------------------------------------


class Burst:
    """Thousands at once make one line a minute: SINGLE_LINES events of a window are told, the others summed up."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._window = clock.monotonic()
        self._told = 0
        self._untold: Counter[str] = Counter()

    def tells(self, what: str) -> bool:
        """Has this one a line of its own?"""
        self.summarise()
        with self._guard:
            if self._told < SINGLE_LINES:
                self._told += 1
                return True
            self._untold[what] += 1
            return False

    def summarise(self) -> None:
        """Tell in one line what had none, once the window is over."""
        with self._guard:
            for_s = self._clock.monotonic() - self._window
            if for_s < WINDOW_S:
                return
            untold, self._untold = self._untold, Counter()
            self._window += for_s
            self._told = 0
        if untold:
            text = ", ".join(f"{count} times {what}" for what, count in sorted(untold.items()))
            log.warning(
                "within %d s also %s",
                round(for_s),
                text,
                extra={"code": "summary", "counts": dict(untold)},
            )


_burst = Burst(SystemClock())


def summarise(burst: Burst | None = None) -> None:
    """Tell what the last minute had too many of; call it about once a minute."""
    (burst or _burst).summarise()


def meter_lost(meter: str, error: MeterError, *, burst: Burst | None = None) -> None:
    """A meter does not answer any more; told at its first failed visit alone."""
    LOST.inc(type(error).__name__)
    if (burst or _burst).tells("meter-lost"):
        _tell("meter-lost", logging.WARNING, str(error), meter=meter, cause=type(error).__name__)
    else:
        EVENTS.inc("meter-lost")


def meter_back(meter: str, for_s: float, visits: int, *, burst: Burst | None = None) -> None:
    """A meter that was lost answers again, after so long and so many failed visits."""
    if (burst or _burst).tells("meter-back"):
        text = f"meter {meter} is back after {for_s:.0f} s and {visits} failed visits"
        _tell("meter-back", logging.INFO, text, meter=meter, for_s=round(for_s, 1), visits=visits)
    else:
        EVENTS.inc("meter-back")


def answer_refused(meter: str, cause: str, during: str, *, burst: Burst | None = None) -> None:
    """An answer was not believed: tag-invalid, replayed, downgraded, compressed, wrong-invoke-id or malformed."""
    REFUSED.inc(cause)
    if (burst or _burst).tells("answer-refused"):
        text = f"meter {meter}: {during}: the answer is refused: {cause}"
        _tell("answer-refused", logging.WARNING, text, meter=meter, cause=cause)


def journal_refused(meter: str, error: BaseException, *, burst: Burst | None = None) -> None:
    """The journal did not take what a meter gave; the meter still holds it and is read again."""
    if (burst or _burst).tells("journal-refused"):
        _tell(
            "journal-refused",
            logging.WARNING,
            f"journal refused rows of meter {meter}: {error}",
            meter=meter,
        )
    else:
        EVENTS.inc("journal-refused")


# Pushes and alarms ----------------------------------------------------------------------------------------------------


def push_port_taken(url: str, cause: str) -> None:
    """Pushes are not heard at an address that cannot be bound; it is tried again until it can."""
    _tell(
        "push-port-taken",
        logging.ERROR,
        f"pushes are not heard at {url}: {cause}; tried again until it is free",
        url=url,
    )


def push_port_bound(url: str) -> None:
    """An address that could not be bound before is ours now."""
    _tell("push-port-bound", logging.INFO, f"pushes are heard at {url} now", url=url)


def push_dropped(cause: str, sender: str) -> None:
    """A push was not believed: tag-invalid, replayed, downgraded, malformed or unknown-sender."""
    _tell(
        "push-dropped",
        logging.WARNING,
        f"push from {sender} dropped: {cause}",
        cause=cause,
        sender=sender,
    )


def alarm_raised(alarm_code: str, meter: str, class_: str, *, burst: Burst | None = None) -> None:
    """An alarm left for the cloud."""
    if (burst or _burst).tells(f"alarm {alarm_code}"):
        text = f"alarm {alarm_code}" + (f" of meter {meter}" if meter else "")
        _tell("alarm", logging.INFO, text, alarm=alarm_code, meter=meter, alarm_class=class_)
    else:
        EVENTS.inc("alarm")


# Journal --------------------------------------------------------------------------------------------------------------


def journal_opened(epoch: int, waiting: int) -> None:
    """The journal is open; so many segments wait for the cloud."""
    text = f"journal open, epoch {epoch}, {waiting} segments waiting"
    _tell("journal-opened", logging.INFO, text, epoch=epoch, waiting=waiting)


def journal_damaged(cause: str) -> None:
    """A file could not be read, was set aside, and a fresh one begun under a new epoch."""
    _tell("journal-damaged", logging.ERROR, f"journal damaged: {cause}", cause=cause)


def journal_full(used_bytes: int, merged: int) -> None:
    """No room is left that may be freed: profiles are not read until there is; alarms of one event may be merged."""
    text = f"journal full at {used_bytes} octets: the meters' own memory is the buffer now"
    if merged:
        text += f"; the reserve is full too, {merged} alarms were merged into newer ones"
    _tell("journal-full", logging.ERROR, text, used_bytes=used_bytes, merged=merged)


def journal_filling(hours_left: int, used_bytes: int) -> None:
    """Most of the journal waits for the cloud, and at this rate it is full in less than a day."""
    text = f"the journal is full in {hours_left} h if nothing is acknowledged: {used_bytes} octets"
    _tell("journal-filling", logging.WARNING, text, hours_left=hours_left, used_bytes=used_bytes)


def journal_has_room() -> None:
    """There is room again; what was missed is read from the meters."""
    _tell(
        "journal-has-room",
        logging.INFO,
        "the journal has room again; what was missed is read from the meters",
    )


# Uplink ---------------------------------------------------------------------------------------------------------------


def uplink_up(url: str, after_s: float) -> None:
    """Connected to the broker, after so long without."""
    _tell(
        "uplink-up",
        logging.INFO,
        f"uplink up: {url}, after {after_s:.0f} s",
        url=url,
        after_s=round(after_s, 1),
    )


def uplink_down(url: str, cause: str) -> None:
    """The broker is away; messages wait in the journal."""
    _tell("uplink-down", logging.WARNING, f"uplink down: {url}: {cause}", url=url, cause=cause)


def message_set_aside(n: int, cause: str) -> None:
    """The broker or the cloud refused a message; it is kept, named, and blocks nobody."""
    _tell("message-set-aside", logging.ERROR, f"message {n} set aside: {cause}", n=n, cause=cause)


def no_acks(for_s: float) -> None:
    """Messages are published, and the cloud acknowledges none."""
    _tell(
        "no-acks", logging.ERROR, f"the cloud acknowledged nothing for {for_s:.0f} s", for_s=for_s
    )


def command_refused(command: str, id_: str, cause: str) -> None:
    """A command of the cloud was not run."""
    _tell(
        "command-refused",
        logging.WARNING,
        f"command {command} {id_} refused: {cause}",
        command=command,
        cause=cause,
    )
