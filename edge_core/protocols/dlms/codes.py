"""Results, diagnostics and errors of the standard, as numbers and in its words.

Invariant: an unknown code is never an error: meters answer with codes of later books; `words` says `unknown (77)`.
Source: DLMS UA Green Book ed. 9, clause 9.5 (ASN.1 of the xDLMS and ACSE APDUs).
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final


class DataAccessResult(IntEnum):
    """Result of GET and SET."""

    SUCCESS = 0
    HARDWARE_FAULT = 1
    TEMPORARY_FAILURE = 2
    READ_WRITE_DENIED = 3
    OBJECT_UNDEFINED = 4
    OBJECT_CLASS_INCONSISTENT = 9
    OBJECT_UNAVAILABLE = 11
    TYPE_UNMATCHED = 12
    SCOPE_OF_ACCESS_VIOLATED = 13
    DATA_BLOCK_UNAVAILABLE = 14
    LONG_GET_ABORTED = 15
    NO_LONG_GET_IN_PROGRESS = 16
    LONG_SET_ABORTED = 17
    NO_LONG_SET_IN_PROGRESS = 18
    DATA_BLOCK_NUMBER_INVALID = 19
    OTHER_REASON = 250


class ActionResult(IntEnum):
    """Result of ACTION."""

    SUCCESS = 0
    HARDWARE_FAULT = 1
    TEMPORARY_FAILURE = 2
    READ_WRITE_DENIED = 3
    OBJECT_UNDEFINED = 4
    OBJECT_CLASS_INCONSISTENT = 9
    OBJECT_UNAVAILABLE = 11
    TYPE_UNMATCHED = 12
    SCOPE_OF_ACCESS_VIOLATED = 13
    DATA_BLOCK_UNAVAILABLE = 14
    LONG_ACTION_ABORTED = 15
    NO_LONG_ACTION_IN_PROGRESS = 16
    OTHER_REASON = 250


class StateError(IntEnum):
    """First half of an exception-response."""

    SERVICE_NOT_ALLOWED = 1
    SERVICE_UNKNOWN = 2


class ServiceError(IntEnum):
    """Second half of an exception-response."""

    OPERATION_NOT_POSSIBLE = 1
    SERVICE_NOT_SUPPORTED = 2
    OTHER_REASON = 3
    PDU_TOO_LONG = 4
    DECIPHERING_ERROR = 5
    INVOCATION_COUNTER_ERROR = 6


class Mechanism(IntEnum):
    """Authentication mechanisms: last number of their object identifier."""

    NONE = 0
    LLS = 1
    HLS2 = 2
    HLS3_MD5 = 3
    HLS4_SHA1 = 4
    HLS5_GMAC = 5
    HLS6_SHA256 = 6
    HLS7_ECDSA = 7


class ApplicationContext(IntEnum):
    """Application contexts: last number of their object identifier."""

    LN = 1
    SN = 2
    LN_CIPHERED = 3
    SN_CIPHERED = 4


class AssociationResult(IntEnum):
    """Result in an AARE."""

    ACCEPTED = 0
    REJECTED_PERMANENT = 1
    REJECTED_TRANSIENT = 2


class UserDiagnostic(IntEnum):
    """Diagnostic of the ACSE service user in an AARE."""

    NULL = 0
    NO_REASON_GIVEN = 1
    APPLICATION_CONTEXT_NAME_NOT_SUPPORTED = 2
    CALLING_AP_TITLE_NOT_RECOGNIZED = 3
    CALLING_AP_INVOCATION_IDENTIFIER_NOT_RECOGNIZED = 4
    CALLING_AE_QUALIFIER_NOT_RECOGNIZED = 5
    CALLING_AE_INVOCATION_IDENTIFIER_NOT_RECOGNIZED = 6
    CALLED_AP_TITLE_NOT_RECOGNIZED = 7
    CALLED_AP_INVOCATION_IDENTIFIER_NOT_RECOGNIZED = 8
    CALLED_AE_QUALIFIER_NOT_RECOGNIZED = 9
    CALLED_AE_INVOCATION_IDENTIFIER_NOT_RECOGNIZED = 10
    AUTHENTICATION_MECHANISM_NAME_NOT_RECOGNISED = 11
    AUTHENTICATION_MECHANISM_NAME_REQUIRED = 12
    AUTHENTICATION_FAILURE = 13
    AUTHENTICATION_REQUIRED = 14


class ProviderDiagnostic(IntEnum):
    """Diagnostic of the ACSE service provider in an AARE."""

    NULL = 0
    NO_REASON_GIVEN = 1
    NO_COMMON_ACSE_VERSION = 2


class ReleaseReason(IntEnum):
    """Reason in RLRQ (URGENT) and RLRE (NOT_FINISHED)."""

    NORMAL = 0
    URGENT_OR_NOT_FINISHED = 1
    USER_DEFINED = 30


class Conformance(IntFlag):
    """The 24 bits of a conformance block; bit 0 of the standard is the most significant one."""

    GENERAL_PROTECTION = 1 << 22
    GENERAL_BLOCK_TRANSFER = 1 << 21
    READ = 1 << 20
    WRITE = 1 << 19
    UNCONFIRMED_WRITE = 1 << 18
    DELTA_VALUE_ENCODING = 1 << 17
    ATTRIBUTE0_SET = 1 << 15
    PRIORITY_MGMT = 1 << 14
    ATTRIBUTE0_GET = 1 << 13
    BLOCK_TRANSFER_GET = 1 << 12
    BLOCK_TRANSFER_SET = 1 << 11
    BLOCK_TRANSFER_ACTION = 1 << 10
    MULTIPLE_REFERENCES = 1 << 9
    INFORMATION_REPORT = 1 << 8
    DATA_NOTIFICATION = 1 << 7
    ACCESS = 1 << 6
    PARAMETERIZED_ACCESS = 1 << 5
    GET = 1 << 4
    SET = 1 << 3
    SELECTIVE_ACCESS = 1 << 2
    EVENT_NOTIFICATION = 1 << 1
    ACTION = 1 << 0

    @property
    def words(self) -> list[str]:
        """Names of what is set, in the standard's order."""
        return [
            flag.name.lower().replace("_", "-")
            for flag in sorted(type(self), reverse=True)
            if flag in self and flag.name is not None
        ]


_SERVICES: Final = {1: "initiate", 2: "get-status", 3: "get-name-list", 5: "read", 6: "write"}
_SERVICE_ERRORS: Final[dict[int, tuple[str, tuple[str, ...]]]] = {
    0: (
        "application-reference",
        (
            "other",
            "time-elapsed",
            "application-unreachable",
            "application-reference-invalid",
            "application-context-unsupported",
            "provider-communication-error",
            "deciphering-error",
        ),
    ),
    1: (
        "hardware-resource",
        (
            "other",
            "memory-unavailable",
            "processor-resource-unavailable",
            "mass-storage-unavailable",
            "other-resource-unavailable",
        ),
    ),
    2: (
        "vde-state-error",
        ("other", "no-dlms-context", "loading-data-set", "status-nochange", "status-inoperable"),
    ),
    3: ("service", ("other", "pdu-size", "service-unsupported")),
    4: (
        "definition",
        (
            "other",
            "object-undefined",
            "object-class-inconsistent",
            "object-attribute-inconsistent",
        ),
    ),
    5: (
        "access",
        (
            "other",
            "scope-of-access-violated",
            "object-access-violated",
            "hardware-fault",
            "object-unavailable",
        ),
    ),
    6: (
        "initiate",
        (
            "other",
            "dlms-version-too-low",
            "incompatible-conformance",
            "pdu-size-too-short",
            "refused-by-the-vde-handler",
        ),
    ),
    7: (
        "load-data-set",
        (
            "other",
            "primitive-out-of-sequence",
            "not-loadable",
            "dataset-size-too-large",
            "not-awaited-segment",
            "interpretation-failure",
            "storage-failure",
            "data-set-not-ready",
        ),
    ),
    9: ("task", ("other", "no-remote-control", "ti-stopped", "ti-running", "ti-unusable")),
}


def words(codes: type[IntEnum], code: int) -> str:
    """A code in the standard's words: `object-undefined`, or `unknown (77)`."""
    try:
        return codes(code).name.lower().replace("_", "-")
    except ValueError:
        return f"unknown ({code})"


def service_error_words(service: int, kind: int, value: int) -> str:
    """A confirmed-service-error in words: `initiate: initiate: dlms-version-too-low`."""
    category, names = _SERVICE_ERRORS.get(kind, (f"unknown ({kind})", ()))
    reason = names[value] if value < len(names) else f"unknown ({value})"
    return f"{_SERVICES.get(service, f'unknown ({service})')}: {category}: {reason}"
