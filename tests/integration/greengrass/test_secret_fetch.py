"""Meter keys that AWS keeps: by the nucleus' Secret Manager, else by the token exchange and the local Secrets Manager."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from edge_core.config.keys import KeyRing
from edge_core.config.load import ConfigErrors
from edge_core.config.schema import Keys
from edge_core.config.sealing import Unavailable, fetch, seal
from edge_core.domain import Secret
from simulators.cloud.ministack import REGION, MiniStack
from tests.integration.greengrass.conftest import Nucleus

pytestmark = [pytest.mark.integration]
GUEK = "000102030405060708090a0b0c0d0e0f"
KEYS = f'[GP1]\nguek = "{GUEK}"\n'


class TokenExchange:
    """What the nucleus' TokenExchangeService answers, on loopback."""

    def __init__(self) -> None:
        self.status = 200
        exchange = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                good = self.headers.get("Authorization") == "the-exchange-token"
                body = {
                    "AccessKeyId": "test",
                    "SecretAccessKey": "test",
                    "Token": "t",
                    "Expiration": "x",
                }
                self.send_response(exchange.status if good else 403)
                self.end_headers()
                self.wfile.write(json.dumps(body if good else {}).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def environment(self, endpoint: str) -> dict[str, str]:
        return {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://127.0.0.1:{self.server.server_port}/2016-11-01/creds",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN": "the-exchange-token",
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": endpoint,
        }


@pytest.fixture
def exchange() -> Iterator[TokenExchange]:
    exchange = TokenExchange()
    yield exchange
    exchange.server.shutdown()
    exchange.server.server_close()


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniStack]:
    with MiniStack(tmp_path_factory.mktemp("aws")) as running:
        yield running


def client(aws: MiniStack) -> Any:
    import boto3

    return boto3.client(
        "secretsmanager", endpoint_url=aws.endpoint, region_name=REGION, aws_access_key_id="test",
        aws_secret_access_key="test",
    )  # fmt: skip


def test_classic_hands_out_a_secret(nuclei: Any) -> None:
    classic: Nucleus = nuclei("classic")
    classic.order("secret", id="meters", value={"secretString": KEYS})
    ring = KeyRing.open(Keys(provider="secret", secret="meters"), classic.environment)
    assert ring.get("GP1").guek == Secret(bytes.fromhex(GUEK))
    blob = base64.b64encode(b"\x00\xff" * 16).decode()
    classic.order("secret", id="kek", value={"secretBinary": blob})
    assert fetch("kek", classic.environment) == b"\x00\xff" * 16


def test_where_nobody_has_it_the_reasons_are_told(nuclei: Any) -> None:
    classic: Nucleus = nuclei("classic")
    classic.fail("GetSecretValue", "UnauthorizedError", times=1)
    with pytest.raises(ConfigErrors, match=r"Unauthorized.*; no token exchange here") as caught:
        fetch("meters", classic.environment)
    assert not isinstance(caught.value, Unavailable)


def test_lite_has_no_secrets_and_the_token_exchange_gets_them(
    lite: Nucleus, exchange: TokenExchange, aws: MiniStack, tmp_path: Path
) -> None:
    kek = bytes(range(32))
    client(aws).create_secret(Name="kek", SecretString=kek.hex())
    sealed = tmp_path / "keys.sealed"
    sealed.write_bytes(seal({"GP1": {"guek": GUEK}}, kek))
    sealed.chmod(0o600)
    keys = Keys(provider="sealed", file=str(sealed), kek="secret:kek")
    environment = lite.environment | exchange.environment(aws.endpoint)
    assert KeyRing.open(keys, environment).get("GP1").guek == Secret(bytes.fromhex(GUEK))
    assert lite.count("GetSecretValue") == 1
    made = client(aws).create_secret(Name="binary", SecretBinary=kek)
    assert fetch(made["ARN"], environment | {"AWS_REGION": ""}) == kek  # the ARN has the region


def test_a_secret_that_is_not_there_is_refused_for_good(
    exchange: TokenExchange, aws: MiniStack
) -> None:
    with pytest.raises(ConfigErrors, match="ResourceNotFoundException") as caught:
        fetch("nothing", exchange.environment(aws.endpoint))
    assert not isinstance(caught.value, Unavailable)


@pytest.mark.parametrize("away", ["cloud", "exchange", "nucleus"])
def test_what_is_away_is_no_reason_to_end(exchange: TokenExchange, nuclei: Any, away: str) -> None:
    environment = exchange.environment("http://127.0.0.1:9")  # nobody listens on discard
    if away == "exchange":
        exchange.status = 500
    if away == "nucleus":
        nucleus: Nucleus = nuclei("lite")
        nucleus.kill()
        environment = nucleus.environment
    ring = KeyRing.open(Keys(provider="secret", secret="meters"), environment)
    assert ring.unavailable is not None
    with pytest.raises(Unavailable, match="cannot be had now"):
        ring.get("GP1")
