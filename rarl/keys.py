"""Keys of YAML files and of the command line: they are read, set with `key=value`, and a mistake is
named in one line, with the file or the override that holds it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rarl.errors import UserError
from rarl.paths import anchored

MERGE_KEY = "tag:yaml.org,2002:merge"
AnySection = TypeVar("AnySection", bound=BaseModel)
# What an override of one entry is added to, where the recipe does not name the group.
ADDED_TO: dict[str, dict[str, float]] = {
    "rewards": {"format": 0.2, "accuracy": 1.0},
    "prompts.train": {"plain": 1.0},
}


class UniqueKeys(yaml.SafeLoader):
    """A loader that refuses a key that a mapping has twice, of which else the last would count."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raises yaml.YAMLError."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE_KEY:
                if key.value in seen:
                    fault = f"the key '{key.value}' is there twice; put both into one"
                    raise yaml.constructor.ConstructorError(None, None, fault, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), UniqueKeys)
    except FileNotFoundError:
        advice = "configurations are YAML files such as configs/demo.yaml"
        raise UserError(f"{path.absolute()}: no such file; {advice}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; name the YAML file, such as config.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(
            f"{path}: expected keys and values at the top level, found {type(tree).__name__}"
        )
    return tree


def listed_numbers(override: str) -> list[int]:
    """Returns the whole numbers of `key=0,1,2` or `key=[0, 1, 2]`. Raises UserError."""
    key, _, value = override.partition("=")
    try:
        return [int(one) for one in value.strip("[]").split(",")]
    except ValueError:
        raise UserError(f"{override}: expected numbers, such as {key}=0,1,2") from None


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Sets one dotted key in place."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"override '{override}': write key=value, for example rollout.group_size=4")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"override '{override}': the value is not valid YAML") from None
    *parents, leaf = key.split(".")
    node = tree
    for depth, part in enumerate(parents, start=1):
        name = ".".join(parents[:depth])
        if part not in node and name in ADDED_TO:  # one more, not one instead
            node[part] = dict(ADDED_TO[name])
        if name.startswith("rewards.") and isinstance(node.get(part), int | float):
            node[part] = {"weight": node[part]}
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise UserError(f"override '{override}': '{part}' is not a group of keys")
    node[leaf] = parsed


def anchored_override(override: str, folder: Path) -> str:
    """Returns an override of which relative paths are relative to `folder` with absolute ones."""
    tree: dict[str, Any] = {}
    apply_override(tree, override)
    moved: Any = anchored(tree, folder)
    if moved == tree:
        return override
    key = override.partition("=")[0]
    for part in key.split("."):
        moved = moved[part]
    return f"{key}={json.dumps(moved)}"


def validated(
    section: type[AnySection], tree: dict[str, Any], overrides: Sequence[str], named: object
) -> AnySection:
    """Returns the section that a tree with overrides makes, such as `rollout.group_size=4`. Raises
    UserError for the first mistake, which names the override that holds it, or else `named`."""
    whole = deepcopy(tree)
    for override in overrides:
        apply_override(whole, override)
    try:
        return section.model_validate(whole)
    except ValidationError as error:
        errors = error.errors()
    # a typo also leaves a key missing
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    key = ".".join(map(str, first["loc"]))
    if place_and_kind(first) not in map(place_and_kind, errors_in(section, tree)):
        set_by = {one: one.partition("=")[0] for one in overrides}
        near = [one for one, its in set_by.items() if is_within(key, its) or is_within(its, key)]
        named = f"override {', '.join(map(repr, near or set_by))}"
    raise UserError(f"{named}: {told_of(first, key, section)}")


def errors_in(section: type[BaseModel], tree: dict[str, Any]) -> list[ErrorDetails]:
    try:
        section.model_validate(tree)
    except ValidationError as error:
        return error.errors()
    return []


def place_and_kind(error: ErrorDetails) -> tuple[Any, ...]:
    """Returns what two errors share that are one mistake; a group's other keys may differ."""
    given = error["input"]
    return error["loc"], error["msg"], None if isinstance(given, dict) else repr(given)


def is_within(key: str, group: str) -> bool:
    """Tells whether a dotted key is `group`, or in it."""
    return key == group or key.startswith(f"{group}.")


def told_of(error: ErrorDetails, key: str, section: type[BaseModel]) -> str:
    """Returns a mistake at a dotted key as one line."""
    if error["type"] == "extra_forbidden":
        nearest = nearest_key(key, section)
        return f"unknown key '{key}'" + (f"; did you mean '{nearest}'?" if nearest else "")
    if error["type"] == "missing":
        return f"key '{key}' is missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    message = message.replace("a valid dictionary", "keys with values")
    if not key or message.startswith(key):
        return message
    got = "" if isinstance(error["input"], dict) else f", got {error['input']!r}"
    return f"key '{key}': {message}{got}"


def nearest_key(unknown: str, section: type[BaseModel]) -> str | None:
    """The known dotted key most like `unknown`; a leaf that exists in another group counts as
    near."""
    known = list(known_keys(section, unknown.split(".")))
    close = difflib.get_close_matches(unknown, known, n=1, cutoff=0.6)
    if close:
        return close[0]
    leaf = unknown.rsplit(".", 1)[-1]
    leaves = {key.rsplit(".", 1)[-1]: key for key in known}
    near = difflib.get_close_matches(leaf, list(leaves), n=1, cutoff=0.6)
    return leaves[near[0]] if near else None


def known_keys(section: type[BaseModel], asked: list[str], prefix: str = "") -> list[str]:
    """All dotted keys; in groups whose entries the user names, those of the entry in `asked`."""
    keys = []
    for name, field in section.model_fields.items():
        inner, place = field.annotation, f"{prefix}{name}."
        keys.append(prefix + name)
        if get_origin(inner) is dict and asked[0] == name and len(asked) > 1:
            inner, place = get_args(inner)[1], f"{place}{asked[1]}."
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            deeper = asked[place.count(".") - prefix.count(".") :] if asked[0] == name else []
            keys += known_keys(inner, deeper or [""], place)
    return keys
