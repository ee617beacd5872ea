"""`module:function` strings: how a configuration names code."""

from __future__ import annotations

import importlib
import sys
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
