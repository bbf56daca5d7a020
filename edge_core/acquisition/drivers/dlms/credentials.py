"""The ciphers and key pairs of a meter, made of its keys and kept while they are used.

Invariant: what is kept is bounded; a key leaves this module inside a cipher, never in an error.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING

from edge_core.config.keys import MESSAGE_KEYS
from edge_core.protocols.dlms import general
from edge_core.protocols.dlms.codes import Mechanism
from edge_core.protocols.dlms.security import SecurityContext

if TYPE_CHECKING:
    from edge_core.config.keys import MeterKeys
    from edge_core.config.models import Association as AssociationModel
    from edge_core.domain import Secret
    from edge_core.protocols.dlms.general import KeyPairs


@lru_cache(maxsize=256)
def context(suite: int, guek: Secret, gak: Secret | None) -> SecurityContext:
    """The cipher of a meter's keys: 8 us to set up and 2.6 kB each, hence only the latest are kept."""
    return SecurityContext(suite, guek, gak)


def pairs_needed(
    model: AssociationModel, mechanism: Mechanism, *, ciphered: bool
) -> tuple[str, ...] | None:
    """Names of the keys of the key pairs that an association needs; None where it needs no pairs at all."""
    general_ciphering = ciphered and model.ciphering == "general-ciphering"
    signs = model.signed or mechanism is Mechanism.HLS7_ECDSA
    if not general_ciphering and not signs:
        return None
    names = MESSAGE_KEYS.get(model.key_info, ()) if general_ciphering else ()
    return tuple(dict.fromkeys((*(("sign", "meter_sign") if signs else ()), *names)))


@lru_cache(maxsize=256)
def key_pairs(suite: int, keys: MeterKeys) -> KeyPairs:
    """The key pairs of a meter; points are proven to be on the curve once.

    Raises:
        LocalProtocolError: one that is none of this suite; it says which.
    """
    if suite == 0:  # it has wrapped keys alone, whatever else the keys file holds
        return general.key_pairs(suite, os.urandom, master=keys.master)
    return general.key_pairs(
        suite,
        os.urandom,
        master=keys.master,
        sign=keys.sign,
        meter_sign=keys.meter_sign,
        agree=keys.agree,
        meter_agree=keys.meter_agree,
    )
