"""PathVQA (He et al. 2020): the hub's Parquet files. Yes and no are closed, everything else is
open."""

from __future__ import annotations

from collections.abc import Iterator

from rarl.errors import UserError
from rarl.prepare.sources.files import Files
from rarl.prepare.sources.hub_parquet import read_hub_parquet
from rarl.prepare.sources.record import Choices, Item


def read_path_vqa(files: Files, choices: Choices) -> Iterator[Item]:
    names = files.find("*.parquet")
    if not names:
        raise UserError(f"{files.named}: holds no Parquet files of PathVQA")
    yield from read_hub_parquet(files, names, "path-vqa")
