"""One rule for relative paths: those in a file are relative to that file, those on the command line
to the current folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

IMPORT_PATH = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
# The keys of a configuration that hold paths; `*` stands for any name.
PATHS = (
    "run_dir",
    "model.path",
    "model.adapter",
    "data.train",
    "data.eval.*",
    "data.select.probe",
    "prompts.templates",
    "judge.model",
)


def anchored(tree: dict[str, Any], folder: Path, keys: Sequence[str] = PATHS) -> dict[str, Any]:
    """Returns the tree with absolute paths in place of those that are relative to `folder`. What is
    no path (`module:function`, a model's Hub id, unless a folder is called so, or the name under
    which a server knows a judge) stays."""
    moved = dict(tree)
    for key in keys:
        first, _, rest = key.partition(".")
        for name in list(moved) if first == "*" else [first]:
            value = moved.get(name)
            if rest and isinstance(value, dict):
                moved[name] = anchored(value, folder, [rest])
            elif key == "model" and moved.get("backend") != "local":
                continue
            elif not rest and isinstance(value, str) and value and not IMPORT_PATH.match(value):
                place = (folder / Path(value).expanduser()).resolve()
                # only models have Hub ids
                if key not in ("path", "model") or value.startswith((".", "~")) or place.exists():
                    moved[name] = str(place)
    return moved
