"""One service for the tests of this folder, and one `rarl serve` whose start and end are tested."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.service import Command, Service, rarl_serve, serve_run, write_run


@pytest.fixture(scope="package")
def adapters(tmp_path_factory: Any, model_path: str) -> Path:
    """The runs `first` and `second` over the tiny base."""
    folder: Path = tmp_path_factory.mktemp("runs")
    write_run(folder / "second", model_path, seed=2)
    write_run(folder / "first", model_path, seed=1)
    return folder


@pytest.fixture(scope="package")
def command(adapters: Path, tmp_path_factory: Any) -> Iterator[Command]:
    """Not waited for."""
    log = tmp_path_factory.mktemp("command") / "log.txt"
    with rarl_serve(adapters / "first", log, "limits.completion_tokens=200") as started:
        yield started


@pytest.fixture(scope="package")
def service(ray_cluster: None, adapters: Path, tmp_path_factory: Any) -> Iterator[Service]:
    """Small limits, so that they can be reached. But a killed engine may take minutes to come back
    on a busy machine, and its requests are to wait for it."""
    limits = {
        "body_seconds": 3,
        "request_seconds": 500,
        "completion_tokens": 200,
        "image_pixels": 4_000_000,
        "concurrent": 16,
    }
    changes = {"name": "base", "adapters": str(adapters), "default": "first", "limits": limits}
    folder = tmp_path_factory.mktemp("service")
    with serve_run(folder, **changes) as running:
        yield running
