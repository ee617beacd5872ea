"""PathVQA (He et al. 2020): the hub's Parquet files. Yes and no are closed, everything else is open."""

from __future__ import annotations

from collections.abc import Iterator

from rarl.data.sources.files import Files
from rarl.data.sources.hub_parquet import read_hub_parquet
from rarl.data.sources.record import Choices, Item
from rarl.errors import UserError


def read_path_vqa(files: Files, choices: Choices) -> Iterator[Item]:
    names = files.find("*.parquet")
    if not names:
        raise UserError(f"{files.named}: holds no Parquet files of PathVQA")
    yield from read_hub_parquet(files, names, "path-vqa")
