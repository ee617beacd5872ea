"""One service for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rarl.tiny.dataset import base_model
from tests.serving.service import Service, serving, write_run


@pytest.fixture(scope="package")
def service(tmp_path_factory: Any) -> Iterator[Service]:
    """The runs `first` and `second` over the tiny base. Small limits, so that they can be
    reached."""
    runs = tmp_path_factory.mktemp("runs")
    write_run(runs / "second", str(base_model()), seed=2)
    first = write_run(runs / "first", str(base_model()), seed=1)
    # A killed engine may take minutes to come back on a busy machine, and its requests are to wait
    # for it.
    limits = [
        "limits.body_seconds=3",
        "limits.request_seconds=500",
        "limits.completion_tokens=200",
        "limits.image_pixels=4000000",
    ]
    log = tmp_path_factory.mktemp("service-log") / "log.txt"
    with serving(
        first, log, *limits, "llm.engine_kwargs.kv_cache_memory_bytes=100000000"
    ) as running:
        yield running
