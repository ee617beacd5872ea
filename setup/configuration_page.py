"""Writes docs/configuration.md: every key of the files of a run, a comparison, a federation and a
service, with its default and the comment that stands beside it in the code.

    .venv/bin/python setup/configuration_page.py        # make docs
"""

from __future__ import annotations

import ast
import inspect
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rarl.commands.compare import Comparison
from rarl.commands.federate import Federation
from rarl.config import Config, JudgeConfig
from rarl.serving.settings import ServiceConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
HEAD = """# Configuration

Written by `make docs` from the code, where each default has its reason beside it. Edit it there.

A configuration is a YAML file, and any key can be set on the command line:
`rarl train mine.yaml rollout.group_size=4 'prompts.train={plain: 1, short: 1}'`. A file may say
`extends: other.yaml`. An unknown key is an error that names the nearest known one. NAME stands for
a name of your own; null, which the text calls None, for nothing.
"""
FILES: dict[str, tuple[type[BaseModel], str]] = {
    "A run": (Config, "For `rarl train`, `sft`, `eval`, `plan` and `judge check`."),
    "A comparison": (Comparison, "For `rarl compare`; [results.md](results.md) is made by one."),
    "A federation": (Federation, "For `rarl federate`; see [sharing.md](sharing.md)."),
    "A service": (
        ServiceConfig,
        "The `args` of the application `inference` in a file such as `serve_config.yaml`, and the "
        "`key=value` of `rarl serve RUN`; see [serving.md](serving.md).",
    ),
}
KINDS: dict[Any, str] = {
    **{int: "whole number", float: "number", bool: "true, false", str: "text"},
    JudgeConfig: "the keys of `judge` above",
}
BAR = "\\|"  # that does not end a cell
BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def comments(section: type[BaseModel]) -> dict[str, str]:
    """Returns what is said of each key: the comment behind it, and the comment lines above it."""
    source = inspect.getsource(section)
    (tree,) = ast.parse(source).body
    lines, found = source.splitlines(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first = node.lineno - 1
            while lines[first - 1].strip().startswith("#"):
                first -= 1
            said = [line.strip().removeprefix("# ") for line in lines[first : node.lineno - 1]]
            end = lines[(node.end_lineno or node.lineno) - 1].encode()[node.end_col_offset :]
            said.append(end.decode().strip().removeprefix("# "))
            found[node.target.id] = " ".join(filter(None, said))
    return found


def sections_in(annotation: Any, prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yields the group of keys that an annotation stands for, if any; those of a dictionary under
    NAME, those of a list under N."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield prefix, annotation
    elif get_origin(annotation) is dict:
        yield from sections_in(get_args(annotation)[1], f"{prefix}.NAME")
    elif get_origin(annotation) is list:
        yield from sections_in(get_args(annotation)[0], f"{prefix}.N")
    elif get_origin(annotation) is Annotated:
        yield from sections_in(get_args(annotation)[0], prefix)


def kind_of(annotation: Any, bounds: tuple[Any, ...] = ()) -> str:
    """Returns the values that a key may have, in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind_of(parts[0], parts[1:])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in parts)
    if origin in (Union, types.UnionType):
        kinds = [kind_of(part, bounds) for part in parts if part is not type(None)]
        return " or ".join([*kinds, *(["null"] if type(None) in parts else [])])
    if origin in (list, tuple):
        return f"list: {kind_of(parts[0])}"
    if origin is dict:
        return "keys of its own" if parts[1] is Any else f"NAME: {kind_of(parts[1])}"
    flat = [one for bound in bounds for one in getattr(bound, "metadata", [bound])]
    limits = [
        f"{word} {getattr(bound, name)}"
        for bound in flat
        for name, word in BOUNDS.items()
        if getattr(bound, name, None) is not None
    ]
    return " ".join([KINDS.get(annotation, ""), ", ".join(limits)]).strip()


def default_of(field: FieldInfo) -> str:
    """Returns a key's default as YAML; a key without one is needed."""
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, dict):
        value = {
            name: one.model_dump(exclude_unset=True) if isinstance(one, BaseModel) else one
            for name, one in value.items()
        }
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    return f"`{text.removesuffix('...' + chr(10)).strip()}`"


def table(section: type[BaseModel], prefix: str) -> Iterator[str]:
    """Yields the lines about a group of keys, and about the groups in it."""
    said, inner = comments(section), []
    hints = typing.get_type_hints(section, include_extras=True)
    if section.__doc__ and prefix:
        yield f"\n### `{prefix}`\n\n{' '.join(section.__doc__.split())}"
    elif prefix:
        yield f"\n### `{prefix}`"
    yield "\n| key | default | may be | meaning |\n| --- | --- | --- | --- |"
    for name, field in section.model_fields.items():
        key = f"{prefix}.{name}" if prefix else name
        groups = list(sections_in(hints[name], key))
        inner += groups
        if not groups or get_origin(field.annotation) in (dict, list):
            kind = "see below" if groups else kind_of(hints[name])
            cells = (f"`{key}`", default_of(field), kind, said.get(name, ""))
            yield f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |"
    for key, group in inner:
        yield from table(group, key)


def page() -> str:
    lines = [HEAD]
    for title, (section, used) in FILES.items():
        lines += [f"\n## {title}\n\n{used}", *table(section, "")]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
