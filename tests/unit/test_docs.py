"""The reference pages say what the code says; every key, command and event has its line."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from edge_core.cli.main import opendcu
from edge_core.config import models, schema
from edge_core.config.tables import fields_of

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "opendcu_reference_pages", REFERENCE / "generate.py"
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


GENERATE = generator()


@pytest.mark.parametrize("name", list(GENERATE.PAGES))
def test_pages_are_as_the_code_is(name: str) -> None:
    written = (REFERENCE / name).read_text(encoding="utf-8")
    assert written == GENERATE.PAGES[name](), "run: .venv/bin/python docs/reference/generate.py"


def test_every_key_is_described() -> None:
    tables = [
        *schema.TABLES.values(),
        schema.Line,
        schema.Meter,
        models.About,
        models.Association,
        models.MeterTime,
    ]
    tables += [
        models.Profile,
        models.PushSetup,
        models.Quirks,
        models.Link,
        models.Point,
        models.Sampling,
    ]
    for cls in tables:
        told = GENERATE.attributes(cls.__doc__ or "")
        assert set(told) == set(fields_of(cls)), f"Attributes of {cls.__name__}"
        assert all(told.values())


def test_every_command_and_option_has_its_words() -> None:
    page = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    for name, command in GENERATE.commands():
        assert f"## opendcu {name}\n" in page
        assert command.help, name
    assert re.search(r"\| `-c, --config FILE` \| The configuration", page)
    assert opendcu.name == "opendcu"
