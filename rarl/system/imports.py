"""How code is found and loaded: `module:function` strings, and the first import of transformers."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rarl.errors import UserError


def import_object(path: str) -> Any:
    """The object behind `package.module:name`. Raises UserError when it is not there."""
    module_name, _, name = path.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # the user's own modules lie where the command is run
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"'{path}' cannot be imported: {error}") from None


def collect_seldom() -> None:
    """For a program at its start. Every 700 new objects Python looks whether some can go; large
    imports make hundreds of thousands, none of which can: a quarter of their time."""
    gc.set_threshold(50_000, 50, 50)


@contextmanager
def quick_imports() -> Iterator[None]:
    """For the first import of transformers in a process of Ray's. It imports scikit-learn and SciPy
    where they are installed, for ways of decoding and losses that RARL has no use for: a second of
    a core in each process."""
    collect_seldom()
    hidden = [name for name in ("sklearn", "scipy") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
