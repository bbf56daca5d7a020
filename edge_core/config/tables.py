"""From TOML tables and CSV rows to structs, with every mistake of a table at once.

`Findings` collects what is wrong (`mistakes`) apart from keys that this release does not know (`unknown`): those are
mistakes for `opendcu check`, while `opendcu run` starts with them, so that a release can start on the next one's file.
The whole table is converted in one go; only a table with a mistake is looked at key by key.
"""

from __future__ import annotations

import difflib
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import inspect

from edge_core.config.values import decode
from edge_core.errors import ConfigError, OpenDCUError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

S = TypeVar("S", bound=msgspec.Struct)

MAX_MISTAKES = 200
"""More than these are counted, not kept: a fleet of 5,000 rows with one wrong column is one mistake in truth."""


class ConfigErrors(OpenDCUError):
    """Every mistake of a configuration.

    Attributes:
        errors: the mistakes in the order of the file; at most MAX_MISTAKES of them.
        left_out: how many more there are.
    """

    def __init__(self, errors: Sequence[ConfigError], left_out: int = 0) -> None:
        self.errors = list(errors)
        self.left_out = left_out
        lines = [str(error) for error in self.errors]
        if left_out:
            lines.append(f"... and {left_out} more")
        super().__init__("\n".join(lines))


class Findings:
    """What is wrong so far."""

    def __init__(self) -> None:
        self.mistakes: list[ConfigError] = []
        self.unknown: list[ConfigError] = []
        self.left_out = 0

    def mistake(self, file: str, table: str, key: str, problem: str, hint: str = "") -> None:
        """Add one mistake."""
        if len(self.mistakes) < MAX_MISTAKES:
            self.mistakes.append(ConfigError(file, table, key, problem, hint))
        else:
            self.left_out += 1

    def raise_mistakes(self, *, strict: bool = True) -> None:
        """Raise ConfigErrors if there is a mistake; in strict mode unknown keys are mistakes too."""
        errors = self.mistakes + (self.unknown if strict else [])
        if errors:
            raise ConfigErrors(errors, self.left_out)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known word, or "" when none is near."""
    lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.6)
    return f'did you mean "{lower[near[0]]}"?' if near else ""


@cache
def fields_of(cls: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    """The fields of a struct by the key in the file."""
    return {f.encode_name: f for f in msgspec.structs.fields(cls)}


@cache
def path_keys(cls: type[msgspec.Struct]) -> tuple[str, ...]:
    """Keys whose values are paths (`Meta(extra={"path": True})`)."""
    return tuple(key for key, f in fields_of(cls).items() if _extra(f.type).get("path"))


def build(
    cls: type[S], raw: object, findings: Findings, file: str, table: str, *, text: bool = False
) -> S | None:
    """The struct of one table, or None after its mistakes were added to `findings`.

    Args:
        raw: what the parser gave: anything, if the user wrote something else than a table.
        text: values are text (CSV) and are converted from it.
    """
    if not isinstance(raw, dict):
        findings.mistake(file, table, "", f"expected a table, got {_plain(raw)}")
        return None
    fields = fields_of(cls)
    if not raw.keys() <= fields.keys():
        raw = dict(raw)
        for key in [k for k in raw if k not in fields]:
            del raw[key]
            findings.unknown.append(
                ConfigError(file, table, key, "unknown key", did_you_mean(key, fields))
            )
    try:
        return msgspec.convert(raw, cls, strict=not text, dec_hook=decode)
    except msgspec.ValidationError as error:
        explain(cls, raw, findings, file, table, error, text=text)
        return None


def explain(
    cls: type[msgspec.Struct],
    raw: Mapping[str, Any],
    findings: Findings,
    file: str,
    table: str,
    error: msgspec.ValidationError,
    *,
    text: bool = False,
) -> None:
    """Add every mistake of a table that msgspec refused with its first one."""
    before = len(findings.mistakes) + findings.left_out
    for key, f in fields_of(cls).items():
        if key not in raw:
            if f.required:
                findings.mistake(file, table, key, "is missing")
            continue
        try:
            msgspec.convert(raw[key], f.type, strict=not text, dec_hook=decode)
        except msgspec.ValidationError as refusal:
            problem, hint = _in_words(f.type, raw[key], str(refusal))
            findings.mistake(file, table, key, problem, hint)
    if len(findings.mistakes) + findings.left_out == before:
        findings.mistake(file, table, "", str(error))


def _in_words(kind: Any, value: Any, refusal: str) -> tuple[str, str]:
    """The refusal of msgspec as (problem, hint) in the user's words."""
    node: inspect.Type | None = inspect.type_info(kind)
    extra: dict[str, Any] = {}
    items = [value]
    while node is not None:  # strip metadata and lists
        if isinstance(node, inspect.Metadata):
            extra = node.extra or extra
            node = node.type
        elif isinstance(node, inspect.VarTupleType | inspect.ListType) and isinstance(value, list):
            node, items = node.item_type, value
        else:
            break
    if isinstance(node, inspect.LiteralType):
        choices = [str(v) for v in node.values if v != ""]
        for item in items:
            if item not in node.values:
                hint = did_you_mean(item, choices) if isinstance(item, str) else ""
                return f"{_plain(item)} is none of: {', '.join(choices)}", hint
    if "says" in extra and all(isinstance(item, str) for item in items):
        return f"{_plain(value)} is not {extra['says']}", ""
    problem, _, place = refusal.partition(" - at `$")
    problem = problem.replace("`", "").replace("Expected", "expected")
    index = place.rstrip("`")
    if problem.startswith("expected"):
        problem += f": {_plain(value)}" if not index else f" at {index}"
    return problem, ""


def _plain(value: object) -> str:
    """A value as the user wrote it, short."""
    if isinstance(value, dict):
        return "a table"
    text = (
        f'"{value}"'
        if isinstance(value, str)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )
    return text if len(text) <= 80 else text[:77] + "..."


@cache
def _extra(kind: Any) -> dict[str, Any]:
    node = inspect.type_info(kind)
    return (node.extra or {}) if isinstance(node, inspect.Metadata) else {}
