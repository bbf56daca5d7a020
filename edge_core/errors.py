"""The one error tree. A class says what the caller may do; its fields say who, where and why.

OpenDCUError
  ConfigError                 refuse to start; all of them are reported at once
  ProtocolError               sans-IO: knows bytes, not meters
    MalformedFrame            HDLC, wrapper, M-Bus, Modbus ADU
    MalformedApdu             ACSE, xDLMS, A-XDR, profile buffers, Modbus PDU
      WrongInvokeId           an answer to another request than ours
    LocalProtocolError        our own bug: the state machine was used wrongly
    TagInvalid                a GCM tag that does not verify: nothing of the APDU is believed
    Replayed                  an invocation counter that was accepted before
    Downgraded                less protection than the association or the model demands
    Compressed                a ciphered APDU that is compressed (V.44), which we do not read
    CounterExhausted          no invocation counter is left under this key
  MeterError                  raised by drivers `from` what caused it; names meter, line and step
    LineSilent                retry now, then in the next pass
    MeterRefused              the meter said no: do not hammer
    KeyRejected               stop and tell a human: meters lock out
    MalformedReply            retry once
    WrongMeter                serial or model differs: read nothing, write nothing
  JournalError
    DiskFull                  stop acquiring; the meters' own memory is the deeper buffer
    JournalDamaged            set the file aside, start afresh under a new epoch, raise an alarm
    DataDirectoryBusy         another gateway holds the lock
  UplinkError
    BrokerUnreachable         back off and reconnect
    PublishRefused            set this message aside, the rest flows
  ControlError                the control socket of a running gateway answers nonsense or not in time
    GatewayAbsent             nobody listens: take the lock and do it oneself
    NotHere                   ask the other processes of the gateway
"""

from __future__ import annotations

from dataclasses import dataclass, field


class OpenDCUError(Exception):
    """Root of everything that OpenDCU raises on purpose."""


@dataclass(eq=False)
class ConfigError(OpenDCUError):
    """One mistake in a configuration, key or model file.

    Attributes:
        file: path of the file as the user named it.
        table: the table, with index and id where it has them: `meters[3] (m00042)`.
        key: the key in that table, or "".
        problem: what is wrong, in the user's words.
        hint: what to write instead, or "".
    """

    file: str
    table: str
    key: str
    problem: str
    hint: str = ""

    def __str__(self) -> str:
        place = ": ".join(p for p in (self.file, self.table, self.key) if p)
        return f"{place}: {self.problem}" + (f" ({self.hint})" if self.hint else "")


class ProtocolError(OpenDCUError):
    """The octets break the protocol. `offset` is the octet where that was seen, or None."""

    def __init__(self, message: str, offset: int | None = None) -> None:
        super().__init__(message)
        self.offset = offset


class MalformedFrame(ProtocolError):
    """A frame whose flags, length, address or checksum is wrong."""


class MalformedApdu(ProtocolError):
    """An APDU or PDU that does not follow its encoding."""


class WrongInvokeId(MalformedApdu):
    """An answer whose invoke-id is not that of the request."""


class LocalProtocolError(ProtocolError):
    """We used the protocol wrongly: a bug of ours, never the peer's fault."""


class TagInvalid(ProtocolError):
    """The authentication tag does not verify."""


class Replayed(ProtocolError):
    """The invocation counter is not above the last verified one."""


class Downgraded(ProtocolError):
    """Less protection than demanded."""


class Compressed(ProtocolError):
    """The APDU is compressed (ITU-T V.44) and cannot be read here."""


class CounterExhausted(ProtocolError):
    """The invocation counters under this key are used up, or the meter claims so."""


@dataclass(eq=False)
class MeterError(OpenDCUError):
    """What went wrong with one meter.

    Attributes:
        meter: the utility's meter number.
        line: id of the line, with the address: `feeder-12, tcp 10.1.0.11:4059`.
        during: the step, in the standard's terms: `AARQ`, `GET 1.0.99.1.0.255:2`.
        cause: what happened.
        hint: what a field engineer checks next, or "".
        code: the meter's own code (data-access-result, exception code), or None.
    """

    meter: str
    line: str
    during: str
    cause: str
    hint: str = ""
    code: int | None = field(default=None, kw_only=True)

    def __str__(self) -> str:
        text = f"meter {self.meter} ({self.line}): {self.during}: {self.cause}"
        return f"{text}. {self.hint}" if self.hint else text


class LineSilent(MeterError):
    """No answer, or the connection could not be made or broke."""


class MeterRefused(MeterError):
    """The meter answered no."""


class KeyRejected(MeterError):
    """A key, password or counter is not accepted, or the meter cannot prove that it knows the key."""


class MalformedReply(MeterError):
    """The answer breaks the protocol, its tag is wrong, or it is not what was asked for."""


class WrongMeter(MeterError):
    """Another device than the configured one answers at this address."""


class JournalError(OpenDCUError):
    """The journal cannot do what was asked."""


class DiskFull(JournalError):
    """No room, on the disk or under the configured limit."""


class JournalDamaged(JournalError):
    """A file that SQLite or our codec cannot read."""


class DataDirectoryBusy(JournalError):
    """Another process holds the lock of this data directory."""


class UplinkError(OpenDCUError):
    """The uplink cannot do what was asked."""


class BrokerUnreachable(UplinkError):
    """No connection, or it broke before the broker confirmed."""


class PublishRefused(UplinkError):
    """The broker refused one message: `code` is its reason code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class ControlError(OpenDCUError):
    """A running gateway did not answer over its control socket, or not in a way we understand."""


class GatewayAbsent(ControlError):
    """No gateway listens on the control socket."""


class NotHere(ControlError):
    """The meter is polled by another process of the gateway, or by none that runs."""
