"""How code is found and loaded: `module:function` strings, and the first import of transformers."""

from __future__ import annotations

import gc
import importlib
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rarl.errors import UserError

# Where code lies that is not the user's own: Python's library, installed packages, and this one.
INSTALLED = (sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
NOT_OWN = ("<", *INSTALLED, str(Path(__file__).parent.parent))


def import_object(path: str) -> Any:
    """Returns the object behind `package.module:name`. Raises UserError when it is not there, and
    for what its module raises."""
    module_name, _, name = path.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # the user's own modules lie where the command is run
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UserError(f"'{path}' cannot be imported: {own_error(error)}") from None
    try:
        return getattr(module, name)
    except AttributeError as error:
        raise UserError(f"'{path}' cannot be imported: {error}") from None


def own_error(error: Exception) -> str:
    """Returns in one line what the user's own code raised, and the file and line of it where it
    did: the innermost ones that are neither an installed package's nor ours."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(NOT_OWN):
            return f"{frame.filename}, line {frame.lineno}: {said}"
    return said


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
