"""A certificate for this gateway from AWS IoT Core: a signing request, then fleet provisioning by a template.

Two ways, one exchange (`$aws/certificates/create-from-csr/json`, `$aws/provisioning-templates/<t>/provision/json`):
with the claim certificate of the factory under the client id `claim-<gateway>`, and, to renew, over the gateway's own
connection with a template that accepts no other gateway's id. The private key never leaves this box.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from edge_core import errors
from edge_core.uplink.requests import ACCEPTED, REJECTED, Rejected, Requests

if TYPE_CHECKING:
    from edge_core.config.schema import Config
    from edge_core.uplink.certificates import Certificates, Pair

CSR = "$aws/certificates/create-from-csr/json"
CLAIM_TEMPLATE = "opendcu-fleet"
RENEWAL_TEMPLATE = "opendcu-renewal"

HINTS = {
    "AccessDenied": "the template's hook refused {gateway}: is it expected (`register` it first), and has it no"
    " certificate yet?",
    "InvalidTemplate": "is there a template {template}, and is it enabled? cloud/template.yaml has it",
    "InvalidParameters": "the template wants other parameters than GatewayId",
    "InvalidCertificateOwnershipToken": "it took longer than an hour: try again",
    "InvalidCertificateSigningRequest": "the clock of this box, or a proxy between, changed the request",
    "ProvisioningFailed": "the template's role or policy is missing: deploy cloud/template.yaml again",
}


class Refused(errors.UplinkError):
    """AWS gives this gateway no certificate; the text says why and what to do."""


class Obtained(NamedTuple):
    """What came.

    Attributes:
        pair: where it lies, not in use yet.
        certificate: id in AWS.
        thing: the name that the certificate stands for.
    """

    pair: Pair
    certificate: str
    thing: str


def provision_topic(template: str) -> str:
    """Where the second question goes."""
    return f"$aws/provisioning-templates/{template}/provision/json"


def answers_of(template: str) -> list[str]:
    """Topics of the answers; IoT Core takes eight in one SUBSCRIBE."""
    return [
        topic + end for topic in (CSR, provision_topic(template)) for end in (ACCEPTED, REJECTED)
    ]


async def obtain(
    requests: Requests, certificates: Certificates, gateway: str, template: str
) -> Obtained:
    """Ask for a certificate and keep it as the next one.

    Raises:
        Refused: AWS says no.
        UplinkError: no answer, or nothing can be kept.
    """
    request = certificates.request(gateway)
    try:
        made = await requests.ask(CSR, {"certificateSigningRequest": request.decode()})
        body = {
            "certificateOwnershipToken": made["certificateOwnershipToken"],
            "parameters": {"GatewayId": gateway},
        }
        given = await requests.ask(provision_topic(template), body)
        thing = str(given.get("thingName", ""))
        if thing != gateway:
            raise Refused(f"the template {template} made thing {thing!r} of gateway {gateway!r}")
        pair = certificates.stage(str(made["certificatePem"]).encode())
    except Rejected as error:
        hint = HINTS.get(error.code, "see the logs of IoT Core").format(
            gateway=gateway, template=template
        )
        raise Refused(f"{error} ({hint})") from error
    except KeyError as error:
        raise errors.UplinkError(f"{CSR}: the answer has no {error}") from error
    return Obtained(pair, str(made.get("certificateId", "")), thing)


async def claim(
    config: Config, certificates: Certificates, claim_pair: Pair, template: str = CLAIM_TEMPLATE
) -> Obtained:
    """The first certificate, by the claim certificate of the factory.

    Raises:
        UplinkError: no connection with the claim certificate, or as `obtain`.
    """
    name = f"claim-{config.gateway.id}"
    return await _obtain_over(config, certificates, claim_pair, name, template)


async def renew(
    config: Config, certificates: Certificates, template: str = RENEWAL_TEMPLATE
) -> Obtained:
    """Another certificate, by the one in use, where no running gateway holds the connection under its name.

    Raises:
        UplinkError: as `claim`.
    """
    shown = certificates.current
    if shown is None:
        raise Refused("there is no certificate in use: obtain one with a claim certificate")
    return await _obtain_over(config, certificates, shown, config.gateway.id, template)


async def _obtain_over(
    config: Config, certificates: Certificates, shown: Pair, client_id: str, template: str
) -> Obtained:
    from edge_core.uplink.clients.aws import AwsClient

    uplink = msgspec.structs.replace(
        config.uplink, cert_file=str(shown.certificate), key_file=str(shown.key)
    )
    first, *others = answers_of(template)
    client = AwsClient(uplink, client_id=client_id, subscription=first, also=others)
    await client.connect()
    requests = Requests(client.publish)

    async def hear() -> None:
        async for message in client.messages():
            requests.feed(message.topic, message.payload)

    hearing = asyncio.create_task(hear(), name="provisioning")
    try:
        return await obtain(requests, certificates, config.gateway.id, template)
    finally:
        hearing.cancel()
        with contextlib.suppress(asyncio.CancelledError, errors.UplinkError):
            await hearing
        await client.close()


async def prove(config: Config, certificates: Certificates) -> None:
    """Connect once with the certificate that was obtained, under the gateway's own name; then it is in use.

    Raises:
        UplinkError: IoT Core does not take it; what was in use before stays so.
    """
    from edge_core.uplink.clients.aws import AwsClient
    from edge_core.uplink.topics import Topics

    fresh = certificates.next
    if fresh is None:
        return
    topics = Topics(config.uplink.topic_prefix, config.gateway.id)
    uplink = msgspec.structs.replace(
        config.uplink, cert_file=str(fresh.certificate), key_file=str(fresh.key)
    )
    client = AwsClient(uplink, client_id=config.gateway.id, subscription=topics.subscription)
    try:
        await client.connect()
    finally:
        await client.close()
    certificates.proved(fresh)
