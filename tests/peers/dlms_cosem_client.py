"""Reads a meter with the dlms-cosem client (21.3.2, MIT) and prints one JSON document as the last line.

A program of its own: it gets no socket and no key of the product, only those of a simulated meter. It speaks
general-glo-ciphering only, and uses one nonce for the GMAC and for the ACTION around it: the meter's record shows it.
usage: dlms_cosem_client.py JOB     JOB as in gurux_client.py
"""

import datetime as dt
import json
import logging
import sys

from dlms_cosem import cosem, enumerations
from dlms_cosem.clients.dlms_client import DlmsClient
from dlms_cosem.cosem.capture_object import CaptureObject
from dlms_cosem.cosem.selective_access import RangeDescriptor
from dlms_cosem.utils import parse_as_dlms_data

logging.disable(logging.CRITICAL)
JOB = json.loads(sys.argv[1])
Interface = enumerations.CosemInterface


def attribute(interface, obis, index=2):
    return cosem.CosemAttribute(
        interface=interface, instance=cosem.Obis.from_string(obis), attribute=index
    )


def client(sap, **more):
    return DlmsClient.with_tcp_transport(
        host=JOB["host"],
        port=JOB["port"],
        client_logical_address=sap,
        server_logical_address=1,
        timeout=5,
        **more,
    )


def plain(cell):
    if isinstance(cell, (bytes, bytearray)):
        return bytes(cell).hex()
    return [plain(c) for c in cell] if isinstance(cell, list) else cell


def main():
    with client(JOB["public"]).session() as c:
        counter = parse_as_dlms_data(c.get(attribute(Interface.DATA, JOB["counter"])))
        serial = parse_as_dlms_data(c.get(attribute(Interface.DATA, "0.0.96.1.0.255")))
    out = {"counter": counter, "serial": bytes(serial).decode(), "profiles": {}, "registers": {}}
    session = client(
        JOB["client"],
        authentication_method=enumerations.AuthenticationMechanism.HLS_GMAC,
        encryption_key=bytes.fromhex(JOB["guek"]),
        authentication_key=bytes.fromhex(JOB["gak"]),
        client_system_title=b"COSEM001",
        client_initial_invocation_counter=counter + 1,
        block_transfer=True,
        max_pdu_size=2048,
    )
    zone = dt.timezone(dt.timedelta(minutes=JOB["offset"]))
    with session.session() as c:
        out["clock"] = plain(parse_as_dlms_data(c.get(attribute(Interface.CLOCK, "0.0.1.0.0.255"))))
        for obis in JOB["registers"]:
            value = parse_as_dlms_data(c.get(attribute(Interface.REGISTER, obis)))
            scaler, unit = parse_as_dlms_data(c.get(attribute(Interface.REGISTER, obis, 3)))
            out["registers"][obis] = [value, scaler, unit]
        for obis in JOB["profiles"]:
            objects = parse_as_dlms_data(c.get(attribute(Interface.PROFILE_GENERIC, obis, 3)))
            clock = cosem.CosemAttribute(
                Interface(objects[0][0]), cosem.Obis.from_bytes(bytes(objects[0][1])), objects[0][2]
            )
            reply = c.get(
                attribute(Interface.PROFILE_GENERIC, obis),
                access_descriptor=RangeDescriptor(
                    restricting_object=CaptureObject(cosem_attribute=clock, data_index=0),
                    from_value=dt.datetime.fromtimestamp(JOB["from"], zone),
                    to_value=dt.datetime.fromtimestamp(JOB["to"], zone),
                    selected_values=None,
                ),
            )
            out["profiles"][obis] = {
                "columns": [[o[0], ".".join(map(str, bytes(o[1]))), o[2]] for o in objects],
                "period": parse_as_dlms_data(c.get(attribute(Interface.PROFILE_GENERIC, obis, 4))),
                "rows": [plain(r) for r in parse_as_dlms_data(reply)],
            }
    print(json.dumps(out))


main()
