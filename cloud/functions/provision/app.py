"""Asked by IoT Core before a template of fleet provisioning is applied: may this gateway have a certificate?

A claim certificate lies in every box of a batch, so holding it proves little. With it, a gateway gets its first
certificate only if the thing is expected (an operator made it) and has none yet: whoever steals a claim can neither
invent a gateway nor take over one that works. To renew, a gateway shows its own certificate, under its own name (the
policy ties the client id to it), and gets one for that name alone; the certificates of renewals before are retired,
for the one that it connects with has proved itself.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import boto3

if TYPE_CHECKING:
    from collections.abc import Iterator

iot = boto3.client("iot")


def handler(event: dict[str, Any], _context: object = None) -> dict[str, bool]:
    """The answer that IoT Core expects: `{"allowProvisioning": bool}`."""
    gateway = str(event.get("parameters", {}).get("GatewayId", ""))
    client = str(event.get("clientId", ""))
    template = str(event.get("templateArn", "")).rpartition("/")[2]
    if template == os.environ["RENEWAL_TEMPLATE"]:
        allowed = client == gateway and _renews(gateway, str(event.get("claimCertificateId", "")))
    else:
        allowed = client == f"claim-{gateway}" and _is_expected(gateway)
    print(f"{template}: {gateway!r} as {client!r}: {'yes' if allowed else 'no'}")  # noqa: T201 the function's log
    return {"allowProvisioning": allowed}


def _is_expected(gateway: str) -> bool:
    """The thing is there and has no certificate."""
    try:
        iot.describe_thing(thingName=gateway)
    except iot.exceptions.ResourceNotFoundException:
        return False
    return not any(_certificates(gateway))


def _renews(gateway: str, shown: str) -> bool:
    """The certificate shown is the gateway's own; all its others are retired."""
    held = list(_certificates(gateway))
    if shown not in (arn.rpartition("/")[2] for arn in held):
        return False
    for arn in held:
        certificate = arn.rpartition("/")[2]
        if certificate != shown:
            iot.update_certificate(certificateId=certificate, newStatus="INACTIVE")
            iot.detach_thing_principal(thingName=gateway, principal=arn)
    return True


def _certificates(gateway: str) -> Iterator[str]:
    for page in iot.get_paginator("list_thing_principals").paginate(thingName=gateway):
        yield from (arn for arn in page["principals"] if ":cert/" in arn)
