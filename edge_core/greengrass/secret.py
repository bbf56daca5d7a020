"""Fetches one secret of AWS and prints it: a program of its own, so that nothing waits for the outside but its parent.

    python -m edge_core.greengrass.secret NAME_OR_ARN

First the nucleus is asked (GetSecretValue: classic with the component aws.greengrass.SecretManager, which keeps a copy
on the box), then, where it has none, Secrets Manager with the credentials of the token exchange (both nuclei). Exit
codes: 0 the secret is on standard output; 1 there is none for us, and why on standard error; 3 not now, but perhaps
later. Standard error never holds a part of a secret or of credentials.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

from edge_core import errors
from edge_core.greengrass.restarts import Never

if TYPE_CHECKING:
    from collections.abc import Mapping

REFUSED, AWAY = 1, 3
NUCLEUS_S = 8.0
HTTP_S = 5.0
MOST_OCTETS = 128 << 10
LATER = {"ThrottlingException", "InternalServiceError", "InternalServiceErrorException"}


class Refused(Exception):
    """No secret for us; the text says why."""


class Away(Exception):
    """Whoever has it does not answer now."""


async def from_nucleus(secret: str, environment: Mapping[str, str]) -> bytes:
    """By the nucleus' IPC.

    Raises:
        Refused: this nucleus has no secrets, or not this one, or not for us.
        Away: it does not answer.
    """
    from awsiot.eventstreamrpc import EventStreamOperationError, SerializeError

    from edge_core.greengrass import ipc as nucleus

    ipc = nucleus.Ipc(
        environment[nucleus.SOCKET],
        environment.get(nucleus.TOKEN, ""),
        environment.get(nucleus.COMPONENT, ""),
        restarts=Never(),
    )
    try:
        async with asyncio.timeout(NUCLEUS_S):
            link = await ipc.open()
            answer = await link.call(lambda client: client.get_secret_value_async(secret_id=secret))
    except (EventStreamOperationError, SerializeError) as error:
        raise Refused(f"the nucleus: {nucleus.named(error)}") from error
    except (errors.UplinkError, TimeoutError) as error:
        raise Away(f"the nucleus: {error or 'no answer'}") from error
    finally:
        await ipc.drop()
    value = answer.secret_value
    if value is None or (value.secret_string is None and value.secret_binary is None):
        raise Refused("the nucleus: the secret is empty")
    if value.secret_string is not None:
        return str(value.secret_string).encode()
    return bytes(value.secret_binary)


def from_aws(secret: str, environment: Mapping[str, str]) -> bytes:
    """From Secrets Manager, as the role that the token exchange gives this box.

    Raises:
        Refused: not for this role, or there is no such secret.
        Away: the token exchange or the cloud does not answer.
    """
    given = _get_credentials(environment)
    region = (
        secret.split(":")[3] if secret.startswith("arn:") else environment.get("AWS_REGION", "")
    )
    if not region:
        raise Refused("AWS_REGION is not set: write the secret's ARN")
    endpoint = (
        environment.get("AWS_ENDPOINT_URL_SECRETS_MANAGER")
        or environment.get("AWS_ENDPOINT_URL")
        or f"https://secretsmanager.{region}.amazonaws.com"
    )
    body = json.dumps({"SecretId": secret}).encode()
    headers = _signed(endpoint, region, body, given)
    answer = _ask(urllib.request.Request(endpoint, body, headers, method="POST"), "Secrets Manager")  # noqa: S310
    if "SecretString" in answer:
        return str(answer["SecretString"]).encode()
    return base64.b64decode(answer.get("SecretBinary", ""))


def _get_credentials(environment: Mapping[str, str]) -> dict[str, Any]:
    url = environment.get("AWS_CONTAINER_CREDENTIALS_FULL_URI", "")
    if not url:
        raise Refused(
            "no token exchange here: add aws.greengrass.TokenExchangeService to the deployment"
        )
    headers = {"Authorization": environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN", "")}
    return _ask(urllib.request.Request(url, headers=headers), "the token exchange")  # noqa: S310 the nucleus' own


def _signed(endpoint: str, region: str, body: bytes, given: dict[str, Any]) -> dict[str, str]:
    """The request's headers with its signature."""
    from awscrt import auth, http
    from awscrt.io import InputStream

    url = urllib.parse.urlsplit(endpoint)
    headers = http.HttpHeaders(
        [
            ("Host", url.netloc),
            ("Content-Type", "application/x-amz-json-1.1"),
            ("X-Amz-Target", "secretsmanager.GetSecretValue"),
        ]
    )
    request = http.HttpRequest("POST", url.path or "/", headers, InputStream(io.BytesIO(body)))
    provider = auth.AwsCredentialsProvider.new_static(
        str(given["AccessKeyId"]), str(given["SecretAccessKey"]), given.get("Token")
    )
    config = auth.AwsSigningConfig(
        algorithm=auth.AwsSigningAlgorithm.V4,
        signature_type=auth.AwsSignatureType.HTTP_REQUEST_HEADERS,
        credentials_provider=provider,
        region=region,
        service="secretsmanager",
    )
    auth.aws_sign_request(request, config).result(HTTP_S)
    return dict(request.headers)


def _ask(request: urllib.request.Request, whom: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(request, timeout=HTTP_S) as reply:  # noqa: S310 http(s) of the nucleus or AWS
            answer = json.loads(reply.read(MOST_OCTETS))
    except urllib.error.HTTPError as error:
        code = _code_of(error.read(4_096))
        if error.code >= 500 or error.code == 429 or code in LATER:
            raise Away(f"{whom}: {error.code} {code}".strip()) from None
        raise Refused(f"{whom}: {error.code} {code}".strip()) from None
    except (OSError, ValueError) as error:
        raise Away(f"{whom}: {getattr(error, 'reason', error)}") from None
    if not isinstance(answer, dict):
        raise Away(f"{whom}: no answer that we know")
    return answer


def _code_of(body: bytes) -> str:
    """The name of an error of AWS; its message is left out, for it may quote what was asked."""
    try:
        return str(json.loads(body)["__type"]).rpartition("#")[2][:100]
    except (ValueError, KeyError, TypeError):
        return ""


def main(secret: str, environment: Mapping[str, str] = os.environ) -> int:
    """The exit code."""
    told: list[str] = []
    away = False
    ways: list[Any] = []
    if environment.get("AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT"):
        ways.append(lambda: asyncio.run(from_nucleus(secret, environment)))
    ways.append(lambda: from_aws(secret, environment))
    for way in ways:
        try:
            found = way()
        except Refused as error:
            told.append(str(error))
        except Away as error:
            told.append(str(error))
            away = True
        else:
            sys.stdout.buffer.write(found)
            return 0
    sys.stderr.write("; ".join(told) + "\n")
    return AWAY if away else REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
