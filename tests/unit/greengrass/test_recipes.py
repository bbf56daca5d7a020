"""Our recipes are what both nuclei take; each rule of the lint is broken once, and the lint names that rule."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from edge_core.greengrass.recipes import RULES, lint, lint_all
from edge_core.greengrass.settings import KEYS, ROLES
from edge_core.uplink.payloads.alarms import CLASSES
from edge_core.uplink.payloads.reads import KINDS
from edge_core.uplink.topics import Topics

ROOT = Path(__file__).parents[3]
RECIPES = {
    path.name: path.read_text(encoding="utf-8") for path in (ROOT / "recipes").glob("*.yaml")
}
GATEWAY = "io.opendcu.Gateway.yaml"


def test_our_recipes_have_no_finding() -> None:
    assert len(RECIPES) == 6
    assert lint_all(RECIPES) == []


def changed(change: Callable[[dict[str, Any]], None]) -> str:
    recipe = yaml.safe_load(RECIPES[GATEWAY])
    change(recipe)
    return yaml.safe_dump(recipe, sort_keys=False, width=10_000)


def rename(table: dict[str, Any], old: str, new: str) -> None:
    table[new] = table.pop(old)


def default(recipe: dict[str, Any]) -> dict[str, Any]:
    return recipe["ComponentConfiguration"]["DefaultConfiguration"]


def first(recipe: dict[str, Any]) -> dict[str, Any]:
    return recipe["Manifests"][0]


def step(recipe: dict[str, Any], phase: str = "startup") -> dict[str, Any]:
    return first(recipe)["Lifecycle"][phase]


def artifact(recipe: dict[str, Any]) -> dict[str, Any]:
    return first(recipe)["Artifacts"][0]


def policy(recipe: dict[str, Any]) -> dict[str, Any]:
    policies = default(recipe)["accessControl"]["aws.greengrass.ipc.mqttproxy"]
    return policies["io.opendcu.Gateway:mqttproxy:publish"]


def script(text: str, phase: str = "startup") -> Callable[[dict[str, Any]], None]:
    return lambda r: step(r, phase).update(Script=text)


def depends(name: str, **entry: Any) -> Callable[[dict[str, Any]], None]:
    return lambda r: r.update(ComponentDependencies={name: entry})


def resource(text: str) -> Callable[[dict[str, Any]], None]:
    return lambda r: policy(r)["resources"].append(text)


BROKEN: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("size", lambda r: default(r).update(Set={"x": "y" * 16_000})),
    ("spelling", lambda r: rename(r, "Manifests", "manifests")),
    ("spelling", lambda r: r.update(Lifecycle={})),
    ("spelling", lambda r: r.pop("ComponentVersion")),
    ("spelling", lambda r: rename(first(r)["Lifecycle"], "install", "Install")),
    ("spelling", lambda r: rename(step(r), "Script", "script")),
    ("spelling", lambda r: step(r).update(Skipif="onpath git")),
    ("spelling", lambda r: rename(artifact(r), "Uri", "URI")),
    ("spelling", lambda r: artifact(r)["Permission"].update(Write="ALL")),
    ("spelling", lambda r: r.update(ComponentType="aws.greengrass.plugin")),
    ("spelling", lambda r: first(r)["Platform"].update(nucleus="lite")),
    ("format", lambda r: r.update(RecipeFormatVersion="2021-01-01")),
    ("name", lambda r: r.update(ComponentName="io opendcu")),
    ("version", lambda r: r.update(ComponentVersion="NEXT_PATCH")),
    ("version", lambda r: r.update(ComponentVersion=1.0)),
    ("description", lambda r: r.update(ComponentDescription="a\nb")),
    ("platform", lambda r: first(r)["Platform"].update(runtime="aws_nucleus_lite")),
    ("platform", lambda r: first(r)["Platform"].pop("runtime")),
    ("platform", lambda r: first(r)["Platform"].update(os="windows")),
    ("platform", lambda r: first(r)["Platform"].update(architecture="/amd64|x86/")),
    ("platform", lambda r: first(r)["Platform"].update(architecture="x86_64")),
    ("platform", lambda r: first(r).pop("Platform")),
    ("platform", lambda r: r.update(Manifests=[])),
    ("order", lambda r: first(r)["Platform"].pop("architecture")),
    ("order", lambda r: r["Manifests"].append(copy.deepcopy(first(r)))),
    ("install", lambda r: first(r)["Lifecycle"].pop("install")),
    ("install", lambda r: first(r).update(Lifecycle={})),
    ("install", lambda r: first(r).pop("Lifecycle")),
    ("phase", lambda r: first(r)["Lifecycle"].update(shutdown={"Script": "exec true"})),
    ("phase", lambda r: first(r)["Lifecycle"].update(bootstrap={"Script": "exec true"})),
    ("phase", lambda r: first(r)["Lifecycle"].update(run={"Script": "exec true"})),
    ("step", lambda r: first(r)["Lifecycle"].update(install="exec true")),
    ("script", script("exec true\nexec true")),
    ("script", script("sh run.sh")),
    ("script", script("exec {artifacts:path}/run.sh")),
    ("script", script("exec sh " + "x" * 10_000)),
    ("variable", script("exec sh -c 'echo ${HOME}'")),
    ("variable", script("exec sh run.sh '{\"a\": 1}'")),
    ("variable", script("exec sh {artifacts:decompressedPath}/x/run.sh")),
    ("variable", script("exec sh {io.opendcu.Uplink:work:path}/run.sh")),
    ("variable", lambda r: step(r).update(Setenv={"A": "{work:dir}"})),
    ("work-path", script("exec sh {work:path}run.sh")),
    ("offline", script("exec python3 -m pip install opendcu", "install")),
    ("offline", script("exec sh -c 'apt-get install python3'", "install")),
    ("offline", script("exec sh -c 'curl -O example'", "install")),
    ("timeout", lambda r: step(r).update(Timeout=301)),
    ("timeout", lambda r: step(r).update(Timeout="120")),
    ("timeout", lambda r: first(r)["Lifecycle"].update(run=step(r)) or first(r)["Lifecycle"].pop("startup")),
    ("setenv", lambda r: step(r).update(Setenv={"A": 1})),
    ("setenv", lambda r: step(r).update(Setenv={"A-B": "1"})),
    ("setenv", lambda r: first(r)["Lifecycle"].update(Setenv=["A=1"])),
    ("artifact", lambda r: artifact(r).update(Unarchive="ZIP")),
    ("artifact", lambda r: artifact(r).update(Uri="https://example/run.sh")),
    ("artifact", lambda r: artifact(r).update(Uri="s3://BUCKET/")),
    ("artifact", lambda r: first(r)["Artifacts"].append(copy.deepcopy(artifact(r)))),
    ("artifact", lambda r: first(r).update(Artifacts={"Uri": "s3://b/x"})),
    ("dependency", depends("aws.greengrass.Nucleus", VersionRequirement=">=2.11.0", DependencyType="SOFT")),
    ("dependency", depends("aws.greengrass.Cli", VersionRequirement=">=2.0.0", DependencyType="SOFT")),
    ("dependency", depends("io.opendcu.Uplink", VersionRequirement=">=0.1.0")),
    ("dependency", depends("aws.greengrass.TokenExchangeService", VersionRequirement=">=2.0.0", DependencyType="HARD")),
    ("spelling", depends("io.opendcu.Uplink", versionRequirement=">=0.1.0", DependencyType="SOFT")),
    ("configuration", lambda r: default(r).update(Meters=["m1", "m2"])),
    ("configuration", lambda r: default(r).update(DataDir="{work:path}/data")),
    ("configuration", lambda r: default(r).update(Set=json.loads('{"a":' * 12 + "1" + "}" * 12))),
    ("access", lambda r: default(r)["accessControl"].update({"aws.greengrass.SecretManager": {}})),
    ("access", lambda r: policy(r).update(operations=["aws.greengrass#Publish"])),
    ("access", lambda r: policy(r).update(operations=["*"])),
    ("access", lambda r: policy(r).update(resources=[])),
    ("access", resource("dcu/?/reads/+")),
    ("access", resource("dcu/{iot:thingName}/reads/+")),
    ("access", resource("*")),
    ("access", resource("+/#")),
    ("access", resource("dcu/+/down/acks")),
    ("access", resource("dcu/+/#")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "change"), BROKEN, ids=[f"{i}-{r}" for i, (r, _) in enumerate(BROKEN)]
)
def test_a_recipe_that_breaks_a_rule_is_found(
    rule: str, change: Callable[[dict[str, Any]], Any]
) -> None:
    found = {finding.rule for finding in lint(changed(change))}
    assert rule in found, f"found {found}"


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "- a",
        "ComponentName: a\nComponentName: b\n",
        "a: &x 1\nb: *x\n",
        "a: !!python/object:os.system x\n",
        "",
    ],
)
def test_what_is_not_plain_yaml_is_found(text: str) -> None:
    assert [finding.rule for finding in lint(text)] == ["yaml"]


def test_one_policy_id_in_two_components_is_found() -> None:
    other = RECIPES["io.opendcu.Uplink.yaml"].replace(
        "io.opendcu.Uplink:mqttproxy:subscribe", "io.opendcu.Gateway:mqttproxy:subscribe"
    )
    found = lint_all({GATEWAY: RECIPES[GATEWAY], "io.opendcu.Uplink.yaml": other})
    assert [finding.rule for finding in found] == ["policy-id"]


def test_every_rule_is_broken_here() -> None:
    assert {rule for rule, _ in BROKEN} | {"yaml", "policy-id"} == set(RULES)


# The recipes against the rest of the product


def matches(pattern: str, topic: str) -> bool:
    expression = re.escape(pattern).replace(r"\+", "[^/]+").replace(r"\#", ".*")
    return re.fullmatch(expression, topic) is not None


@pytest.mark.parametrize("name", ["Gateway", "Uplink"])
def test_every_topic_that_we_use_is_allowed_and_none_below_down(name: str) -> None:
    access = default(yaml.safe_load(RECIPES[f"io.opendcu.{name}.yaml"]))["accessControl"]
    policies = list(access["aws.greengrass.ipc.mqttproxy"].values())
    publish, subscribe = (
        [
            r
            for p in policies
            if f"aws.greengrass#{operation}" in p["operations"]
            for r in p["resources"]
        ]
        for operation in ("PublishToIoTCore", "SubscribeToIoTCore")
    )
    plain, basic = Topics("dcu", "dcu-0001"), Topics("dcu", "dcu-0001", basic_ingest=True)
    topics = [place.reads(kind) for place in (plain, basic) for kind in KINDS]
    topics += [plain.alarms(class_) for class_ in CLASSES]
    topics += [plain.plain(kind) for kind in ("events", "anomalies", "health", "completeness")]
    topics.append(plain.reply("abc-1"))
    assert [t for t in topics if not any(matches(r, t) for r in publish)] == []
    assert any(matches(r, plain.subscription) for r in subscribe)
    for down in (plain.acks, plain.commands + "x"):
        assert not any(matches(r, down) for r in publish)


def test_components_recipes_versions_and_settings_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    names = {yaml.safe_load(text)["ComponentName"] for text in RECIPES.values()}
    assert names == {*ROLES, "io.opendcu.AnomalyModel"}
    for text in RECIPES.values():
        recipe = yaml.safe_load(text)
        assert recipe["ComponentVersion"] == version
        assert f"recipes/{recipe['ComponentName']}.yaml" in {f"recipes/{name}" for name in RECIPES}
        for key in default(recipe) if "ComponentConfiguration" in recipe else ():
            assert key in {*KEYS, "ConfigFile", "Set", "accessControl"}, key
        for manifest in recipe["Manifests"]:
            for entry in manifest["Artifacts"]:
                assert f"/{recipe['ComponentName']}/{version}/" in entry["Uri"]


@pytest.mark.parametrize(
    "folder",
    [
        ".",
        *(f"components/{name.rpartition('.')[2]}" for name in [*ROLES, "io.opendcu.AnomalyModel"]),
    ],
)
def test_gdk_finds_one_component_and_its_recipe_in_a_folder(folder: str) -> None:
    place = ROOT / folder
    config = json.loads((place / "gdk-config.json").read_text())
    ((name, component),) = config["component"].items()  # exactly one
    assert component["build"]["build_system"] == "custom"
    assert component["build"]["custom_build_command"] == ["opendcu", "component", "build", name]
    assert re.fullmatch(r"\d+\.\d+\.\d+", component["version"])
    assert component["publish"].keys() >= {"bucket", "region"}
    assert component["author"]
    target = (place / "recipe.yaml").resolve()  # GDK takes the name of a link's target
    assert target == ROOT / "recipes" / f"{name}.yaml"
    assert yaml.safe_load(target.read_text())["ComponentVersion"] == component["version"]


# The shape that the public recipe reference gives, in our words: the second opinion beside the lint

STEP = {
    "type": "object",
    "required": ["script"],
    "properties": {
        "script": {"type": "string"},
        "timeout": {"type": "integer"},
        "requiresprivilege": {"type": "boolean"},
        "setenv": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "additionalProperties": False,
}
SHAPE = {
    "type": "object",
    "required": ["recipeformatversion", "componentname", "componentversion", "manifests"],
    "additionalProperties": False,
    "properties": {
        "recipeformatversion": {"const": "2020-01-25"},
        "componentname": {"type": "string", "pattern": "^[a-zA-Z0-9-_.]+$", "maxLength": 128},
        "componentversion": {"type": "string", "maxLength": 64},
        "componenttype": {"enum": ["aws.greengrass.generic"]},
        "componentdescription": {"type": "string"},
        "componentpublisher": {"type": "string"},
        "componentconfiguration": {
            "type": "object",
            "properties": {"defaultconfiguration": {"type": "object"}},
        },
        "manifests": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "platform": {"type": "object", "additionalProperties": {"type": "string"}},
                    "lifecycle": {
                        "type": "object",
                        "properties": {"install": STEP, "startup": STEP},
                        "additionalProperties": False,
                    },
                    "artifacts": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["uri"],
                            "additionalProperties": False,
                            "properties": {
                                "uri": {"type": "string", "pattern": "^s3://"},
                                "unarchive": {"enum": ["NONE", "ZIP"]},
                                "permission": {
                                    "type": "object",
                                    "properties": {
                                        "read": {"enum": ["NONE", "OWNER", "ALL"]},
                                        "execute": {"enum": ["NONE", "OWNER", "ALL"]},
                                    },
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}  # fmt: skip


def lowered(value: Any) -> Any:
    """As the public schema reads recipes: keys in lower case."""
    if isinstance(value, dict):
        return {str(key).lower(): lowered(inner) for key, inner in value.items()}
    return [lowered(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_have_the_shape_of_the_public_reference(name: str) -> None:
    jsonschema.validate(lowered(yaml.safe_load(RECIPES[name])), SHAPE)


def test_gdk_builds_by_the_command_of_its_configuration(tmp_path: Path) -> None:
    """As GDK 1.6.2 does it: its folders are made, then the command runs where gdk-config.json is, and nothing more.

    (GDK is not on PyPI; it was run by hand on this checkout: docs/howto/greengrass.md.)
    """
    for name in ("components", "recipes"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True)
    for name in ("edge_core", "requirements", "pyproject.toml", "LICENSE"):
        (tmp_path / name).symlink_to(ROOT / name)
    place = tmp_path / "components" / "AnomalyModel"
    ((name, component),) = json.loads((place / "gdk-config.json").read_text())["component"].items()
    build = place / "greengrass-build"
    artifacts = build / "artifacts" / name / component["version"]
    artifacts.mkdir(parents=True)
    (build / "recipes").mkdir()
    program, *arguments = component["build"]["custom_build_command"]
    command = [str(Path(sys.executable).with_name(program)), *arguments]
    done = subprocess.run(
        command, cwd=place, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    # what `gdk component publish` asks for
    recipe = yaml.safe_load(
        (build / "recipes" / (place / "recipe.yaml").resolve().name).read_text()
    )
    assert recipe["ComponentName"] == name
    uris = {a["Uri"].rpartition("/")[2] for m in recipe["Manifests"] for a in m["Artifacts"]}
    assert uris == {file.name for file in artifacts.iterdir()}
