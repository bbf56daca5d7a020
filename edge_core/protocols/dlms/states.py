"""The states of an association and what changes them; the picture in the docs is drawn from TRANSITIONS."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class State(StrEnum):
    """Where the association stands."""

    IDLE = "idle"
    ASSOCIATING = "AARQ sent"
    AUTHENTICATING = "pass 3 sent"
    READY = "associated"
    ASKING = "request sent"
    RELEASING = "RLRQ sent"
    CLOSED = "released"
    BROKEN = "broken"


class Event(StrEnum):
    """What changes the state."""

    AARQ = "send AARQ"
    ACCEPTED = "AARE accepts"
    CHALLENGED = "AARE with StoC"
    PROVEN = "f(CtoS) verified"
    REQUEST = "send request"
    ANSWERED = "answer complete"
    RLRQ = "send RLRQ"
    RLRE = "RLRE"
    FAILED = "anything else"


TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.IDLE, Event.AARQ): State.ASSOCIATING,
    (State.ASSOCIATING, Event.ACCEPTED): State.READY,
    (State.ASSOCIATING, Event.CHALLENGED): State.AUTHENTICATING,
    (State.AUTHENTICATING, Event.PROVEN): State.READY,
    (State.READY, Event.REQUEST): State.ASKING,
    (State.ASKING, Event.ANSWERED): State.READY,
    (State.READY, Event.RLRQ): State.RELEASING,
    (State.RELEASING, Event.RLRE): State.CLOSED,
    **{(state, Event.FAILED): State.BROKEN for state in State},
}
