"""The program that MiniStack runs in, with two things that it lacks for us.

1. Every TCP listener of it binds 127.0.0.1, its MQTT one too, which asks for 0.0.0.0.
2. Fleet provisioning from a signing request: MiniStack answers `$aws/certificates/create/json` (AWS makes the key) and
   RegisterThing, but not `$aws/certificates/create-from-csr/json` (the key stays on the box), which is the only way of
   ours. Here that topic is answered beside the others, on MiniStack's own broker, with its own CA, registry, tokens and
   refusals; the shape of question and answer is the one of AWS' developer guide (fleet provisioning MQTT API).
   `OPENDCU_CERTIFICATE_LIFE_S` makes the certificates short-lived, to rehearse renewal.

Run as a script by `simulators.cloud.ministack`, never imported. A MiniStack that answers the topic itself is left alone.
"""

# ruff: noqa: SLF001 the parts of MiniStack that are taken and replaced have no public names

import asyncio.base_events
import datetime as dt
import importlib
import json
import os
import runpy
import secrets
from typing import Any

CSR_TOPIC = "$aws/certificates/create-from-csr/json"
TOKEN_S = 3_600

_listen: Any = asyncio.base_events.BaseEventLoop.create_server


async def _listen_here(
    loop: Any, factory: Any, host: Any = None, port: Any = None, **more: Any
) -> Any:
    everywhere = port is not None and host in (None, "", "0.0.0.0", "::")
    return await _listen(loop, factory, "127.0.0.1" if everywhere else host, port, **more)


def answer_signing_requests() -> None:
    """Let MiniStack's broker answer CSR_TOPIC, as it answers the other topics of fleet provisioning."""
    iot: Any = importlib.import_module("ministack.services.iot")
    parse, reply = iot._parse_fleet_provisioning_topic, iot._fleet_provisioning_reply
    if parse(CSR_TOPIC) is not None:
        return

    def parse_more(topic: str) -> Any:
        return ("create-from-csr", None) if topic == CSR_TOPIC else parse(topic)

    async def reply_more(
        account: str, region: str, operation: str, template: Any, payload: bytes, connection: Any
    ) -> Any:
        if operation != "create-from-csr":
            return await reply(account, region, operation, template, payload, connection)
        try:
            request = str(json.loads(payload)["certificateSigningRequest"])
        except (ValueError, KeyError, TypeError):
            return iot._fleet_rejected("InvalidPayload", "Message cannot be parsed")
        ca = iot._ensure_ca()
        try:
            pem = _shortened(iot.sign_certificate_request(*ca, request), *ca)
        except ValueError:
            return iot._fleet_rejected(
                "InvalidCertificateSigningRequest", "CSR violates constraints"
            )
        number, token = iot.get_certificate_id(pem), secrets.token_urlsafe(48)
        with iot.request_scope(account, region):
            record = iot._certificate_record(number, pem, "PENDING_ACTIVATION")
            iot._certificates[number] = record
            until = dt.datetime.now(dt.UTC).timestamp() + TOKEN_S  # noqa: TID251 a program of its own
            iot._ownership_tokens[token] = {"certificateId": number, "expiration": until}
        return "accepted", {
            "certificateId": number,
            "certificatePem": pem,
            "certificateOwnershipToken": token,
        }

    iot._parse_fleet_provisioning_topic = parse_more
    iot._fleet_provisioning_reply = reply_more


def _shortened(pem: str, ca_pem: str, ca_key_pem: str) -> str:
    """The same certificate with the life that the environment asks for."""
    life_s = float(os.environ.get("OPENDCU_CERTIFICATE_LIFE_S") or 0)
    if not life_s:
        return pem
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    long, ca = (x509.load_pem_x509_certificate(text.encode()) for text in (pem, ca_pem))
    key: Any = serialization.load_pem_private_key(ca_key_pem.encode(), None)
    now = dt.datetime.now(dt.UTC)  # noqa: TID251 a program of its own
    built = (
        x509.CertificateBuilder()
        .subject_name(long.subject)
        .issuer_name(ca.subject)
        .public_key(long.public_key())
        .serial_number(long.serial_number)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(seconds=life_s))
    )
    for extension in long.extensions:
        built = built.add_extension(extension.value, extension.critical)
    return built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


if __name__ == "__main__":
    asyncio.base_events.BaseEventLoop.create_server = _listen_here  # type: ignore[method-assign,assignment]
    answer_signing_requests()
    runpy.run_module("ministack", run_name="__main__", alter_sys=True)
