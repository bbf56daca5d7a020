"""Our lint of component recipes: one text that classic 2.11 and later and lite 2.4 and later take alike.

Each rule is a fact of facts/greengrass.md (sections 4, 6 and 9), most of them seen on a running nucleus; RULES tells
why. Lite is case-sensitive and treats every brace of a script as a variable, so what classic forgives is a finding.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

RULES = {
    "size": "a recipe has at most 16,000 octets (GDK; lite 16 KiB)",
    "yaml": "plain YAML, each key once: lite's parser knows no anchors and no tags",
    "spelling": "lite is case-sensitive and drops what it does not know",
    "format": 'RecipeFormatVersion is the text "2020-01-25"',
    "name": "letters, digits, . - _, at most 128",
    "version": "an exact version: NEXT_PATCH becomes the name of a folder",
    "description": "one line: it becomes a line of a systemd unit",
    "platform": 'os linux, runtime "*" (lite takes no manifest without), no regular expressions, known architectures',
    "order": "the first manifest that matches wins: the most specific first, each once",
    "install": "an install step in every version: v1 with and v2 without one breaks the deployment after the next",
    "phase": "install and one of startup and run: lite has no shutdown and no recover, and reboots for bootstrap",
    "step": "a step is a map with a Script: the short form is read differently",
    "script": "one line, exec, at most 10,000 octets; files run by sh or python3, for exec bits do not survive",
    "variable": "lite takes a brace as a variable, and only some: no shell braces, no JSON, no other component's",
    "work-path": "{work:path} ends in a slash on lite only: write a separator or nothing behind it",
    "offline": "nothing is fetched or installed on the box: classic installs again at every start of the nucleus",
    "timeout": "at most 300 s: lite's deployment waits no longer; none on run, where the two nuclei differ",
    "setenv": "names as in a shell, values of text",
    "artifact": "Uri with a file name, each once, Unarchive NONE: lite does not unzip artifacts of a local deployment",
    "dependency": "spelled out, never on a nucleus or its CLI; the token exchange only SOFT",
    "configuration": "scalars and maps: a deployment replaces lists whole; no variables; at most 12 deep",
    "access": "known services and operations, resources without ? and variables, never everything, never down/",
    "policy-id": "a policy id is unique over all components",
}

MOST_OCTETS, MOST_SCRIPT, MOST_TIMEOUT, MOST_DEPTH = 16_000, 10_000, 300, 12
TOP = {
    "RecipeFormatVersion", "ComponentName", "ComponentVersion", "ComponentType", "ComponentDescription",
    "ComponentPublisher", "ComponentConfiguration", "ComponentDependencies", "Manifests",
}  # fmt: skip
NEEDED = ("RecipeFormatVersion", "ComponentName", "ComponentVersion", "Manifests")
MANIFEST = {"Name", "Platform", "Lifecycle", "Artifacts"}
PLATFORM = {"os", "runtime", "architecture", "architecture.detail"}
ARCHITECTURES = {"amd64", "x86", "aarch64", "arm", "riscv64"}
PHASES = {"install", "startup", "run", "Setenv"}
STEP = {"Script", "RequiresPrivilege", "Setenv", "Timeout"}
ARTIFACT = {"Uri", "Unarchive", "Permission"}
PERMISSION = {"Read", "Execute"}
DEPENDENCY = {"VersionRequirement", "DependencyType"}
VARIABLE = re.compile(
    r"\{(artifacts:path|work:path|kernel:rootPath|iot:thingName|configuration:/[A-Za-z0-9_/.-]+)\}"
)
FETCHES = re.compile(
    r"(?<![\w/.-])(pip3?|venv|virtualenv|apt(-get)?|apk|opkg|dnf|yum|curl|wget|git)(?![\w.-])|-m (pip|venv)\b"
)
OPERATIONS = {
    "aws.greengrass.ipc.mqttproxy": {"aws.greengrass#PublishToIoTCore", "aws.greengrass#SubscribeToIoTCore"},
    "aws.greengrass.ipc.pubsub": {"aws.greengrass#PublishToTopic", "aws.greengrass#SubscribeToTopic"},
}  # fmt: skip
POLICY = {"policyDescription", "operations", "resources"}
NEVER = {"aws.greengrass.Nucleus", "aws.greengrass.NucleusLite", "aws.greengrass.Cli"}


class Finding(NamedTuple):
    """One thing that one of the nuclei would not take, or would take differently."""

    file: str
    rule: str
    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}: {self.place}: {self.text} [{self.rule}: {RULES[self.rule]}]"


def lint_all(recipes: Mapping[str, str]) -> list[Finding]:
    """Findings of recipes that are deployed together; file name to text."""
    found = [finding for file, text in recipes.items() for finding in lint(text, file)]
    seen: dict[str, str] = {}
    for file, text in recipes.items():
        found += [
            Finding(file, "policy-id", policy, f"is one of {seen[policy]} too")
            for policy in _policy_ids(text)
            if seen.setdefault(policy, file) != file
        ]
    return found


def lint(text: str, file: str = "recipe") -> list[Finding]:
    """Findings of one recipe, in the order of the text's parts."""
    return [Finding(file, *finding) for finding in _lint(text)]


Found = tuple[str, str, str]  # rule, place, text


def _lint(text: str) -> Iterator[Found]:
    if len(text.encode()) > MOST_OCTETS:
        yield "size", "recipe", f"{len(text.encode())} octets"
    try:
        recipe = yaml.load(text, _Strict)  # noqa: S506 a SafeLoader that also refuses doubled keys and anchors
    except yaml.YAMLError as error:
        yield "yaml", "recipe", " ".join(str(error).split())
        return
    yield from _recipe(recipe)


def _recipe(recipe: Any) -> Iterator[Found]:
    if not isinstance(recipe, dict):
        yield "yaml", "recipe", "is no map"
        return
    yield from _keys(recipe, TOP, "recipe")
    for key in NEEDED:
        if key not in recipe:
            yield "spelling", "recipe", f"{key} is missing"
    yield from _head(recipe)
    yield from _configuration(recipe.get("ComponentConfiguration"))
    yield from _dependencies(recipe.get("ComponentDependencies"))
    manifests = recipe.get("Manifests")
    if not isinstance(manifests, list) or not manifests:
        yield "platform", "Manifests", "is no list with a manifest in it"
        return
    for i, manifest in enumerate(manifests):
        yield from _manifest(manifest, f"Manifests[{i}]")
    yield from _order(manifests)


def _keys(table: Mapping[Any, Any], known: set[str], place: str) -> Iterator[Found]:
    lower = {key.lower(): key for key in known}
    for key in table:
        if key not in known:
            right = lower.get(str(key).lower())
            yield (
                "spelling",
                f"{place}.{key}",
                f"write {right}" if right else "is not known to both nuclei",
            )


def _head(recipe: Mapping[str, Any]) -> Iterator[Found]:
    if recipe.get("RecipeFormatVersion") != "2020-01-25":
        yield "format", "RecipeFormatVersion", f"is {recipe.get('RecipeFormatVersion')!r}"
    name = str(recipe.get("ComponentName", ""))
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", name):
        yield "name", "ComponentName", f"is {name!r}"
    version = recipe.get("ComponentVersion")
    if not isinstance(version, str) or not re.fullmatch(
        r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?", version
    ):
        yield "version", "ComponentVersion", f"is {version!r}"
    if "\n" in str(recipe.get("ComponentDescription", "")).strip() or str(
        recipe.get("ComponentDescription", "")
    ).endswith("\n"):
        yield "description", "ComponentDescription", "has more than one line"
    if recipe.get("ComponentType", "aws.greengrass.generic") != "aws.greengrass.generic":
        yield "spelling", "ComponentType", "plugins and lambdas are no components of lite"


# Manifests ------------------------------------------------------------------------------------------------------------


def _manifest(manifest: Any, place: str) -> Iterator[Found]:
    if not isinstance(manifest, dict):
        yield "spelling", place, "is no map"
        return
    yield from _keys(manifest, MANIFEST, place)
    platform = manifest.get("Platform")
    if isinstance(platform, dict):
        yield from _platform(platform, f"{place}.Platform")
    else:
        yield "platform", place, "has no Platform"
    lifecycle = manifest.get("Lifecycle")
    if isinstance(lifecycle, dict):
        yield from _lifecycle(lifecycle, f"{place}.Lifecycle")
    else:
        yield "install", place, "has no Lifecycle"
    yield from _artifacts(manifest.get("Artifacts"), f"{place}.Artifacts")


def _platform(platform: Mapping[str, Any], place: str) -> Iterator[Found]:
    yield from _keys(platform, PLATFORM, place)
    if platform.get("os") != "linux":
        yield "platform", place, f"os is {platform.get('os')!r}"
    if platform.get("runtime") != "*":
        yield "platform", place, f"runtime is {platform.get('runtime')!r}"
    for key, value in platform.items():
        if str(value).startswith("/"):
            yield "platform", f"{place}.{key}", "is a regular expression"
    if "architecture" in platform and str(platform["architecture"]) not in ARCHITECTURES:
        yield "platform", place, f"architecture is {platform['architecture']!r}"


def _order(manifests: list[Any]) -> Iterator[Found]:
    seen: list[tuple[Any, Any]] = []
    for i, manifest in enumerate(manifests):
        platform = manifest.get("Platform") if isinstance(manifest, dict) else None
        if not isinstance(platform, dict):
            continue
        mine = platform.get("architecture"), platform.get("architecture.detail")
        for before in seen:
            if before[0] in (None, mine[0]) and before[1] in (None, mine[1]):
                yield (
                    "order",
                    f"Manifests[{i}]",
                    "is never taken: one before it matches whatever it matches",
                )
                break
        seen.append(mine)


def _lifecycle(lifecycle: Mapping[str, Any], place: str) -> Iterator[Found]:
    for phase in lifecycle:
        if phase not in PHASES:
            right = {p.lower(): p for p in PHASES}.get(str(phase).lower())
            rule = "spelling" if right else "phase"
            yield rule, f"{place}.{phase}", f"write {right}" if right else "is not for both nuclei"
    if "install" not in lifecycle:
        yield "install", place, "has no install"
    if "startup" in lifecycle and "run" in lifecycle:
        yield "phase", place, "has both startup and run"
    yield from _setenv(lifecycle.get("Setenv"), f"{place}.Setenv")
    for phase in ("install", "startup", "run"):
        if phase in lifecycle:
            yield from _step(phase, lifecycle[phase], f"{place}.{phase}")


def _step(phase: str, step: Any, place: str) -> Iterator[Found]:
    if not isinstance(step, dict) or not isinstance(step.get("Script"), str):
        yield "step", place, "is no map with a Script"
        if isinstance(step, dict):
            yield from _keys(step, STEP, place)
        return
    yield from _keys(step, STEP, place)
    yield from _setenv(step.get("Setenv"), f"{place}.Setenv")
    yield from _script(step["Script"], f"{place}.Script")
    if "Timeout" in step:
        if phase == "run":
            yield "timeout", place, "has a Timeout"
        elif not isinstance(step["Timeout"], int) or not 0 < step["Timeout"] <= MOST_TIMEOUT:
            yield "timeout", place, f"is {step['Timeout']!r}"


def _script(script: str, place: str) -> Iterator[Found]:
    if "\n" in script:
        yield "script", place, "has more than one line"
    if len(script.encode()) > MOST_SCRIPT:
        yield "script", place, f"has {len(script.encode())} octets"
    if not script.startswith("exec "):
        yield "script", place, "does not begin with exec: signals would stop at the shell"
    elif not re.match(r"exec (sh|python3|/bin/sh|true)\b", script):
        yield "script", place, "runs a file without sh or python3"
    if "{" in VARIABLE.sub("", script) or "}" in VARIABLE.sub("", script):
        yield "variable", place, f"has a brace that is no variable: {script}"
    if re.search(r"\{work:path\}[^/\"' ]", script):
        yield "work-path", place, "joins a name to {work:path}"
    if fetch := FETCHES.search(script):
        yield "offline", place, f"calls {fetch[0]}"


def _setenv(setenv: Any, place: str) -> Iterator[Found]:
    if setenv is None:
        return
    if not isinstance(setenv, dict):
        yield "setenv", place, "is no map"
        return
    for name, value in setenv.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", str(name)) or not isinstance(value, str):
            yield "setenv", f"{place}.{name}", f"is {value!r}"
        elif "{" in VARIABLE.sub("", value):
            yield "variable", f"{place}.{name}", "has a brace that is no variable"


def _artifacts(artifacts: Any, place: str) -> Iterator[Found]:
    if artifacts is None:
        return
    if not isinstance(artifacts, list):
        yield "artifact", place, "is no list"
        return
    names: set[str] = set()
    for i, artifact in enumerate(artifacts):
        here = f"{place}[{i}]"
        if not isinstance(artifact, dict):
            yield "artifact", here, "is no map"
            continue
        yield from _keys(artifact, ARTIFACT, here)
        permission = artifact.get("Permission", {})
        if not isinstance(permission, dict):
            yield "artifact", here, "Permission is no map"
        else:
            yield from _keys(permission, PERMISSION, f"{here}.Permission")
        uri = str(artifact.get("Uri", ""))
        name = uri.rpartition("/")[2]
        if not re.fullmatch(r"s3://[^/]+/.+[^/]", uri):
            yield "artifact", here, f"Uri is {uri!r}"
        elif name in names:
            yield "artifact", here, f"{name} is there twice"
        names.add(name)
        if artifact.get("Unarchive", "NONE") != "NONE":
            yield "artifact", here, f"Unarchive is {artifact['Unarchive']!r}"


# Configuration --------------------------------------------------------------------------------------------------------


def _configuration(configuration: Any) -> Iterator[Found]:
    if configuration is None:
        return
    place = "ComponentConfiguration"
    if not isinstance(configuration, dict):
        yield "configuration", place, "is no map"
        return
    yield from _keys(configuration, {"DefaultConfiguration"}, place)
    default = configuration.get("DefaultConfiguration") or {}
    place += ".DefaultConfiguration"
    if not isinstance(default, dict):
        yield "configuration", place, "is no map"
        return
    for key, value in default.items():
        if key == "accessControl":
            yield from _access(value, f"{place}.{key}")
        else:
            yield from _values(value, f"{place}.{key}", 2)


def _values(value: Any, place: str, depth: int) -> Iterator[Found]:
    if depth > MOST_DEPTH:
        yield "configuration", place, f"is {depth} deep"
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _values(inner, f"{place}.{key}", depth + 1)
    elif isinstance(value, list):
        yield "configuration", place, "is a list"
    elif isinstance(value, str) and re.search(r"\{[a-z]+:", value):
        yield "configuration", place, "has a variable"


def _access(access: Any, place: str) -> Iterator[Found]:
    if not isinstance(access, dict):
        yield "access", place, "is no map"
        return
    for service, policies in access.items():
        if service not in OPERATIONS or not isinstance(policies, dict):
            yield "access", f"{place}.{service}", "is no service that we use"
            continue
        for policy in policies.values():
            yield from _policy(service, policy, f"{place}.{service}")


def _policy(service: str, policy: Any, place: str) -> Iterator[Found]:
    if not isinstance(policy, dict):
        yield "access", place, "is no map"
        return
    yield from _keys(policy, POLICY, place)
    operations, resources = _texts(policy.get("operations")), _texts(policy.get("resources"))
    if not operations or not set(operations) <= OPERATIONS[service]:
        yield "access", place, f"operations are {policy.get('operations')}"
    if not resources:
        yield "access", place, "has no resources"
    for resource in resources:
        publishes = any("Publish" in operation for operation in operations)
        if "?" in resource or "{" in resource:
            yield "access", place, f"{resource} has a ? or a variable"
        elif not resource.strip("*#+/"):
            yield "access", place, f"{resource} is everything"
        elif publishes and re.search(r"(^|/)(down/|[*#]$)", resource):
            yield "access", place, f"{resource} lets acks be published: only the cloud may"


def _texts(value: Any) -> list[str]:
    """The entries of a list, as text; [] for what is no list."""
    return [str(entry) for entry in value] if isinstance(value, list) else []


def _dependencies(dependencies: Any) -> Iterator[Found]:
    if dependencies is None:
        return
    if not isinstance(dependencies, dict):
        yield "dependency", "ComponentDependencies", "is no map"
        return
    for name, entry in dependencies.items():
        place = f"ComponentDependencies.{name}"
        if name in NEVER:
            yield "dependency", place, "is a nucleus"
        if not isinstance(entry, dict):
            yield "dependency", place, "is no map"
            continue
        yield from _keys(entry, DEPENDENCY, place)
        if "VersionRequirement" not in entry or entry.get("DependencyType") not in ("HARD", "SOFT"):
            yield "dependency", place, "VersionRequirement and DependencyType are not both there"
        elif name.endswith("TokenExchangeService") and entry["DependencyType"] != "SOFT":
            yield "dependency", place, "is HARD"


def _policy_ids(text: str) -> list[str]:
    try:
        recipe = yaml.load(text, _Strict)  # noqa: S506 as above
        access = recipe["ComponentConfiguration"]["DefaultConfiguration"]["accessControl"]
        return [policy for policies in access.values() for policy in policies]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        return []


class _Strict(yaml.SafeLoader):  # type: ignore[misc]
    """YAML as both nuclei read it."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                None, None, "an alias (*)", self.peek_event().start_mark
            )
        if getattr(self.peek_event(), "anchor", None):
            raise yaml.composer.ComposerError(
                None, None, "an anchor (&)", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        doubled = [key for key in keys if keys.count(key) > 1]
        if doubled:
            raise yaml.constructor.ConstructorError(
                None, None, f"{doubled[0]} is there twice", node.start_mark
            )
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping
