"""Trees, their ONNX file, and the signed directory around it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_core.detector import features, model, onnx, trees
from edge_core.detector.session import session_of


@pytest.fixture(scope="module")
def forest() -> trees.Forest:
    """Trained on a problem that needs two features together."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(3000, len(features.NAMES))).astype(np.float32)
    y = (x[:, 3] > 0.2) ^ (x[:, 40] > 0)
    return trees.train(x, y, np.ones(3000, np.float32), seed=5, rounds=40, depth=3, columns=1.0)


def test_trees_learn_what_no_single_feature_tells(forest: trees.Forest) -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(2000, len(features.NAMES))).astype(np.float32)
    y = (x[:, 3] > 0.2) ^ (x[:, 40] > 0)
    assert ((forest.logit(x) > 0) == y).mean() > 0.9
    top = np.argsort(-forest.importance(x.shape[1]))[:2]
    assert set(top.tolist()) == {3, 40}


def test_training_is_reproducible() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 6)).astype(np.float32)
    y = x[:, 0] > 0
    runs = [trees.train(x, y, np.ones(500, np.float32), seed=s, rounds=5) for s in (9, 9, 10)]
    encoded = [onnx.encode(run, 6) for run in runs]
    assert encoded[0] == encoded[1] != encoded[2]


def test_onnx_says_what_the_trees_say(forest: trees.Forest) -> None:
    rng = np.random.default_rng(6)
    x = (rng.normal(size=(5000, len(features.NAMES))) * 3).astype(np.float32)
    for tree in forest.trees:  # exactly on a threshold: the branch must be the same
        inner = np.flatnonzero(tree.feature >= 0)
        x[inner, tree.feature[inner]] = tree.threshold[inner]
    got = session_of(onnx.encode(forest, x.shape[1]))(x)
    np.testing.assert_allclose(got, forest.logit(x), atol=2e-5)


@pytest.fixture
def signed(forest: trees.Forest, tmp_path: Path) -> tuple[Path, str]:
    """A signed directory and its public key."""
    card, _ = model.load(model.BUILTIN, model.trusted_keys())
    encoded = onnx.encode(forest, len(features.NAMES))
    import hashlib

    card = msgspec.structs.replace(card, onnx_sha256=hashlib.sha256(encoded).hexdigest())
    private = os.urandom(32)
    model.write(tmp_path / "m", card, encoded, private)
    return tmp_path / "m", Ed25519PrivateKey.from_private_bytes(
        private
    ).public_key().public_bytes_raw().hex()


def test_a_signed_model_is_believed(signed: tuple[Path, str]) -> None:
    directory, key = signed
    card, encoded = model.load(directory, ["00" * 32, "no key", key])
    assert len(encoded) > 1000
    assert card.schema == model.SCHEMA


def test_a_model_of_somebody_else_is_refused(signed: tuple[Path, str]) -> None:
    directory, _ = signed
    with pytest.raises(model.ModelRefused, match="no trusted key"):
        model.load(directory, model.trusted_keys())


@pytest.mark.parametrize("file", ["model.onnx", "model.json", "model.sig"])
def test_a_missing_file_is_named(signed: tuple[Path, str], file: str) -> None:
    directory, key = signed
    (directory / file).unlink()
    with pytest.raises(model.ModelRefused, match=file):
        model.load(directory, [key])


def test_a_changed_card_breaks_the_signature(signed: tuple[Path, str]) -> None:
    directory, key = signed
    text = (directory / "model.json").read_text().replace("Apache-2.0", "Apache-2.1")
    (directory / "model.json").write_text(text)
    with pytest.raises(model.ModelRefused, match="no trusted key"):
        model.load(directory, [key])


def test_another_onnx_file_is_refused(signed: tuple[Path, str]) -> None:
    directory, key = signed
    content = bytearray((directory / "model.onnx").read_bytes())
    content[-1] ^= 1
    (directory / "model.onnx").write_bytes(content)
    with pytest.raises(model.ModelRefused, match="not the file"):
        model.load(directory, [key])


def test_a_large_file_is_refused(signed: tuple[Path, str]) -> None:
    directory, key = signed
    (directory / "model.onnx").write_bytes(bytes(model.MAX_ONNX + 1))
    with pytest.raises(model.ModelRefused, match="more than"):
        model.load(directory, [key])


def test_a_model_for_other_features_is_refused(forest: trees.Forest, tmp_path: Path) -> None:
    card, encoded = model.load(model.BUILTIN, model.trusted_keys())
    private = os.urandom(32)
    key = Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw().hex()
    for change in (
        {"feature_schema": "opendcu.features/0"},
        {"feature_names": card.feature_names[1:]},
    ):
        model.write(tmp_path, msgspec.structs.replace(card, **change), encoded, private)
        with pytest.raises(model.ModelRefused, match="features"):
            model.load(tmp_path, [key])
    for scales in ((), ((0, 0.0),), ((500, 0.0),)):
        model.write(tmp_path, msgspec.structs.replace(card, scales=scales), encoded, private)
        with pytest.raises(model.ModelRefused, match="averages over"):
            model.load(tmp_path, [key])
    model.write(tmp_path, msgspec.structs.replace(card, thresholds={}), encoded, private)
    with pytest.raises(model.ModelRefused, match="threshold"):
        model.load(tmp_path, [key])


def test_a_signed_card_that_is_none_is_refused(signed: tuple[Path, str]) -> None:
    directory, _ = signed
    private = Ed25519PrivateKey.generate()
    text = json.dumps({"schema": model.SCHEMA, "version": 3}).encode()
    (directory / "model.json").write_bytes(text)
    (directory / "model.sig").write_text(private.sign(text).hex())
    with pytest.raises(model.ModelRefused, match=r"model\.json"):
        model.load(directory, [private.public_key().public_bytes_raw().hex()])
    (directory / "model.sig").write_text("not hex")
    with pytest.raises(model.ModelRefused, match="no hex"):
        model.load(directory, [])


def test_thresholds_go_by_the_false_alarms_that_a_site_accepts() -> None:
    card, _ = model.load(model.BUILTIN, model.trusted_keys())
    limits = [card.threshold(v) for v in (0.0001, 0.005, 0.02, 0.03, 1.0)]
    assert limits == sorted(limits, reverse=True)
    assert limits[0] == max(card.thresholds.values())
    assert card.threshold(0.025) == card.threshold(0.02)


def test_the_builtin_model_passes_its_self_test() -> None:
    card, encoded = model.load(model.BUILTIN, model.trusted_keys())
    got = session_of(encoded)(np.array(card.self_test.rows, np.float32))
    np.testing.assert_allclose(got, card.self_test.logits, atol=model.TOLERANCE)
    assert set(card.data["households"]).isdisjoint(card.data["held_out"])
