"""A model directory: `model.onnx`, `model.json`, `model.sig`; what is in it, and when it is refused.

`model.json` names everything that a finding depends on: version, schema and names of the features, thresholds by the
false alarms that they cost, days that a score is averaged over, data and licence, scores on households never seen, the
SHA-256 of the ONNX file, and rows with their expected logits. `model.sig` is the Ed25519 signature (hex) over the bytes
of `model.json`. Trusted keys are those of the package (builtin/keys.json) and `[commands] signers` of the site; the
directory itself can never bring one.

Bounds: MAX_ONNX and MAX_JSON octets, MAX_FEATURES features.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from edge_core.detector import features
from edge_core.detector.history import KEEP_LOGITS
from edge_core.errors import OpenDCUError

if TYPE_CHECKING:
    from collections.abc import Iterable

SCHEMA: Literal["opendcu.anomaly-model/1"] = "opendcu.anomaly-model/1"
BUILTIN = Path(__file__).parent / "builtin"
MAX_ONNX, MAX_JSON, MAX_FEATURES = 2 << 20, 1 << 20, 256


TOLERANCE = 1e-3
"""Of logits between training and ONNX: sums of float32 in another order."""


class ModelRefused(OpenDCUError):
    """A model directory that is not used; says which and why."""


class SelfTest(msgspec.Struct, frozen=True):
    """Rows and what the model says of them, within TOLERANCE."""

    rows: list[list[float]]
    logits: list[float]


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """model.json.

    Attributes:
        version: names the model in every finding; two models never share one.
        feature_schema, feature_names: the columns of the input, in order.
        thresholds: false alarms per meter-month on training households (as text) to the logit that costs them.
        scales: (days, allowance): the score is the highest of the logits averaged over so many days, plus that much.
        typical: by feature, median and half the 5 % to 95 % spread on ordinary days, for explanations.
        onnx_sha256: of model.onnx.
        data, scores, licence: where it comes from, how good it is, what it may be used for.
    """

    schema: Literal["opendcu.anomaly-model/1"]
    version: str
    feature_schema: str
    feature_names: list[str]
    thresholds: dict[str, float]
    scales: tuple[tuple[int, float], ...]
    typical: dict[str, tuple[float, float]]
    onnx_sha256: str
    self_test: SelfTest
    data: dict[str, Any]
    scores: dict[str, Any]
    licence: str

    def threshold(self, false_alarms: float) -> float:
        """The lowest logit whose false alarms per meter-month do not exceed those wanted; the strictest otherwise."""
        fitting = [v for k, v in self.thresholds.items() if float(k) <= false_alarms + 1e-9]
        return min(fitting) if fitting else max(self.thresholds.values())


def trusted_keys(more: Iterable[str] = ()) -> list[str]:
    """Public keys that models may be signed with, hex."""
    ours = json.loads((BUILTIN / "keys.json").read_text())["keys"]
    return [*ours, *more]


def trust(key: str) -> None:
    """Make a public key (hex) that of this release: when the builtin model is trained anew, in a source checkout."""
    (BUILTIN / "keys.json").write_text(json.dumps({"keys": [key]}) + "\n")


def load(directory: Path, keys: Iterable[str]) -> tuple[Card, bytes]:
    """The card and the ONNX file of a directory whose signature verifies.

    Raises:
        ModelRefused: a file is missing, too large or malformed, no trusted key signed it, the ONNX file is another
            one, or its features are not those of this release.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    card_bytes = _read(directory / "model.json", MAX_JSON)
    onnx = _read(directory / "model.onnx", MAX_ONNX)
    try:
        signature = bytes.fromhex(_read(directory / "model.sig", 4096).decode("ascii").strip())
    except ValueError:
        raise ModelRefused(f"{directory}: model.sig is no hex text") from None
    for key in keys:
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(signature, card_bytes)
            break
        except (InvalidSignature, ValueError):
            continue
    else:
        raise ModelRefused(f"{directory}: no trusted key signed this model.json")
    try:
        card = msgspec.json.decode(card_bytes, type=Card)
    except msgspec.MsgspecError as error:
        raise ModelRefused(f"{directory}: model.json: {error}") from None
    if hashlib.sha256(onnx).hexdigest() != card.onnx_sha256:
        raise ModelRefused(
            f"{directory}: model.onnx is not the file that model.json was signed for"
        )
    if card.feature_schema != features.SCHEMA or card.feature_names != list(features.NAMES):
        raise ModelRefused(
            f"{directory}: made for features {card.feature_schema}, this release computes {features.SCHEMA}"
        )
    if len(card.feature_names) > MAX_FEATURES or not card.thresholds:
        raise ModelRefused(f"{directory}: too many features, or no threshold")
    if not card.scales or not all(0 < days <= KEEP_LOGITS for days, _ in card.scales):
        raise ModelRefused(f"{directory}: averages over none or over more than {KEEP_LOGITS} days")
    return card, onnx


def write(directory: Path, card: Card, onnx: bytes, private_key: bytes) -> None:
    """Write and sign a model directory.

    Args:
        private_key: 32 octets of an Ed25519 key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    text = msgspec.json.format(msgspec.json.encode(card), indent=0)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.onnx").write_bytes(onnx)
    (directory / "model.json").write_bytes(text)
    signature = Ed25519PrivateKey.from_private_bytes(private_key).sign(text)
    (directory / "model.sig").write_text(signature.hex() + "\n")


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise ModelRefused(f"{path}: {error.strerror}") from None
    if len(content) > most:
        raise ModelRefused(f"{path}: more than {most} octets")
    return content
