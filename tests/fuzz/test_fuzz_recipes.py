"""Whatever a recipe holds, the lint says what it finds and never fails itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_core.greengrass import recipes

RECIPE = yaml.safe_load((Path(__file__).parents[2] / "recipes/io.opendcu.Gateway.yaml").read_text())
JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    out = [path] if path else []
    if isinstance(value, dict):
        return out + [p for key, inner in value.items() for p in places(inner, (*path, key))]
    if isinstance(value, list):
        return out + [p for i, inner in enumerate(value) for p in places(inner, (*path, i))]
    return out


PLACES = places(RECIPE)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLACES), JSON), min_size=1, max_size=3))
def test_a_recipe_with_anything_anywhere(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    recipe = copy.deepcopy(RECIPE)
    for path, value in changes:
        holder = recipe
        for step in path[:-1]:
            if not isinstance(holder, dict | list):
                break
            try:
                holder = holder[step]
            except (KeyError, IndexError, TypeError):
                break
        if isinstance(holder, dict) or (
            isinstance(holder, list) and path[-1] in range(len(holder))
        ):
            holder[path[-1]] = value
    for rule, place, text in recipes._recipe(recipe):
        assert rule in recipes.RULES
        assert place
        assert text


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    recipes.lint(text)
