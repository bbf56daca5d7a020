"""How a peer says no within an association: hints and facts, by class.

Raised by `association`; the driver turns them into MeterErrors. Source: DLMS UA Green Book ed. 9, clauses 9.3, 9.5.
"""

from __future__ import annotations

from edge_core.errors import ProtocolError, TagInvalid
from edge_core.protocols.dlms.codes import ActionResult, ServiceError


class Refused(ProtocolError):
    """The peer said no, in the words of the standard.

    Attributes:
        code: its result, diagnostic or error code, or None.
        authenticated: the answer was protected; else it is only a hint.
    """

    def __init__(
        self, message: str, code: int | None = None, *, authenticated: bool = False
    ) -> None:
        super().__init__(message)
        self.code = code
        self.authenticated = authenticated


class AssociationRefused(Refused):
    """An AARE that says no."""


class ProofRefused(Refused):
    """The peer does not accept our proof of HLS."""


class ProofInvalid(TagInvalid):
    """The peer's proof in pass 4 is missing, mirrored or wrong."""


class AccessRefused(Refused):
    """A data-access-result or action-result that is not success."""


class ExceptionAnswered(Refused):
    """An exception-response.

    Attributes:
        service: what was answered, in the standard's terms.
    """

    service = "exception-response"


class ServiceErrorAnswered(ExceptionAnswered):
    """A confirmed-service-error; its codes are others than those of exception-responses."""

    service = "confirmed-service-error"


class NotNegotiated(Refused):
    """The peer did not offer this service, so it was not asked."""


def is_counter_error(error: Refused) -> bool:
    """Does the peer say that our invocation counter is too low?"""
    return (
        isinstance(error, ExceptionAnswered)
        and not isinstance(error, ServiceErrorAnswered)
        and error.code == ServiceError.INVOCATION_COUNTER_ERROR
    )


def is_denied(error: AccessRefused) -> bool:
    """Does the object not exist for this client?"""
    return error.code in (
        ActionResult.READ_WRITE_DENIED,
        ActionResult.OBJECT_UNDEFINED,
        ActionResult.OBJECT_UNAVAILABLE,
        ActionResult.SCOPE_OF_ACCESS_VIOLATED,
    )
