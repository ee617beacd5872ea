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
    """Returns the object behind `package.module:name`. Raises UserError when it is not there."""
    module_name, _, name = path.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # the user's own modules lie where the command is run
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"'{path}' cannot be imported: {error}") from None


def collect_seldom() -> None:
    """Makes Python look for garbage less often than after every 700 new objects. Large imports
    make hundreds of thousands, none of which can go; looking is a quarter of their time."""
    gc.set_threshold(50_000, 50, 50)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Inside, transformers is imported for the first time in a process of Ray's. It would import
    scikit-learn and SciPy where they are installed, for ways of decoding and losses that RARL has
    no use for: a second of a core in each process."""
    collect_seldom()
    hidden = [name for name in ("sklearn", "scipy") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
