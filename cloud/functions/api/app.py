"""The REST API: reads, latest and events of a meter, on-demand reads, the state of a gateway."""

from __future__ import annotations

import os
import time
import uuid
from typing import Any

import boto3
import msgspec
from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response
from aws_lambda_powertools.event_handler.exceptions import BadRequestError, NotFoundError
from opendcu_cloud import answers, notices, rows

from api.store import Courier, Store

app = APIGatewayRestResolver(serializer=answers.encode)
store = Store(boto3.client("dynamodb"), os.environ["TABLE"])


def courier() -> Courier:
    """Made when it is needed: most calls only read."""
    clients = boto3.client("iot-data"), boto3.client("sqs")
    return Courier(store, *clients, os.environ["TOPIC_PREFIX"], os.environ["COMMAND_QUEUE"])


def now() -> int:
    """The time by the platform's clock, UTC epoch seconds."""
    return int(time.time())  # noqa: TID251 a function has no other clock


def parameter(name: str) -> str | None:
    """A query parameter, or None."""
    value = (app.current_event.query_string_parameters or {}).get(name)
    return str(value) if value else None


@app.exception_handler(answers.BadQuestion)  # type: ignore[untyped-decorator]  # powertools leaves it untyped
def bad_question(error: answers.BadQuestion) -> Response[str]:
    """400 with the reason."""
    return Response(
        400, "application/json", answers.encode({"statusCode": 400, "message": str(error)})
    )


@app.get("/meters/<meter>/reads")
def reads(meter: str) -> dict[str, Any]:
    """Rows of a meter: `from`, `to` (default the last day), `kind` (default interval), `register`."""
    at = now()
    first, last = answers.span(parameter("from"), parameter("to"), at)
    kind = parameter("kind") or "interval"
    items = store.between(rows.meter_key(meter), *answers.key_span(kind, first, last), at)
    found = answers.series(items, first, last, parameter("register"), master_of(meter, at))
    return {"meter": meter, "kind": kind, "from": first, "to": last, "series": found}


@app.get("/meters/<meter>/latest")
def latest(meter: str) -> dict[str, Any]:
    """The newest row of every register of a meter, by `kind` (default interval)."""
    at = now()
    kind = parameter("kind") or "interval"
    low, high = answers.key_span(kind, at - answers.MAX_SPAN_S, at + rows.DAY_S)
    items = store.between(rows.meter_key(meter), low, high, at, newest_first=True)
    newest: list[tuple[str, dict[str, str]]] = []
    for sk, texts in items:
        if newest and sk.split("#")[1] != newest[0][0].split("#")[1]:
            break  # an older hour: the newest one has been seen in all its profiles
        newest.append((sk, texts))
    if not newest:
        raise NotFoundError(f"nothing of kind {kind} is stored of meter {meter}")
    found = answers.series(newest, 0, at + rows.DAY_S, None, master_of(meter, at))
    return {"meter": meter, "kind": kind, "series": answers.newest(found)}


@app.get("/meters/<meter>/events")
def events(meter: str) -> dict[str, Any]:
    """Alarms and event-log rows of a meter: `from`, `to` (default the last day)."""
    at = now()
    first, last = answers.span(parameter("from"), parameter("to"), at)
    items = store.between(rows.meter_key(meter), f"E#{first:011d}", f"E#{last:011d}#~", at)
    found = [msgspec.json.decode(texts["doc"]) for _, texts in items]
    return {"meter": meter, "from": first, "to": last, "events": found}


@app.put("/meters/<meter>")
def master(meter: str) -> dict[str, Any]:
    """The meter master: `{"multiplier": CT x PT}`. Only it scales."""
    multiplier = (app.current_event.json_body or {}).get("multiplier")
    if type(multiplier) is not int or multiplier < 1:
        raise BadRequestError("multiplier is an integer above 0")
    store.put(
        rows.meter_key(meter),
        notices.MASTER,
        1 << 40,
        doc=answers.encode({"multiplier": multiplier}),
    )
    return {"meter": meter, "multiplier": multiplier}


@app.post("/meters/<meter>/read")
def read(meter: str) -> tuple[dict[str, Any], int]:
    """Read a meter now: `{"what", "from", "to"}`. 202 and a request to ask for later."""
    at = now()
    served_by = store.document(rows.meter_key(meter), "AT", at)
    if served_by is None:
        raise NotFoundError(f"no gateway has brought readings of meter {meter}")
    command = answers.read_command(uuid.uuid4().hex, meter, app.current_event.json_body or {}, at)
    dcu = msgspec.json.decode(served_by["doc"])["dcu"]
    courier().order(dcu, command)
    return {"request": command["id"], "gateway": dcu, "expires": command["expires"]}, 202


@app.get("/requests/<request>")
def request(request: str) -> dict[str, Any]:
    """What became of an on-demand read: sent, accepted, done, failed or expired."""
    at = now()
    pk = notices.request_key(request)
    reply = store.document(pk, "R", at)
    if reply is not None:
        return {
            "request": request,
            **_of(reply, ("state", "error", "layouts", "blocks", "registers")),
        }
    order = store.document(pk, "C", at)
    if order is None:
        raise NotFoundError(f"no request {request}")
    return {"request": request, "state": "sent" if at < int(order["expires"]) else "expired"}


@app.get("/gateways/<dcu>")
def gateway(dcu: str) -> dict[str, Any]:
    """The last health message of a gateway."""
    health = store.document(notices.gateway_key(dcu), "HEALTH", now())
    if health is None:
        raise NotFoundError(f"gateway {dcu} has not said how it is")
    return {"gateway": dcu, "health": msgspec.json.decode(health["doc"])}


def master_of(meter: str, at: int) -> int | None:
    """The multiplier of the meter master, None when it is not known."""
    item = store.document(rows.meter_key(meter), notices.MASTER, at)
    return notices.multiplier_of(item["doc"]) if item else None


def _of(item: dict[str, str], names: tuple[str, ...]) -> dict[str, Any]:
    document = msgspec.json.decode(item["doc"])
    return {name: document[name] for name in names if name in document}


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Entry point: an API Gateway proxy event."""
    return app.resolve(event, context)
