"""The data sets of a comparison: each name stands for one of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from rarl.commands.compare import read_plan
from rarl.errors import UserError
from tests.runs import REPOSITORY

RECIPES = REPOSITORY / "configs" / "recipes" / "tiny"


def test_one_name_stands_for_one_data_set(tmp_path: Path, dataset: Path) -> None:
    other = tmp_path / "other" / "test.parquet"
    other.parent.mkdir()
    other.write_bytes(dataset.read_bytes())
    path, again = tmp_path / "small.yaml", f"{other.parent}/../other/test.parquet"

    def plan(first: object, second: object, **data: str) -> None:
        models = {
            name: {"title": name, "recipe": str(RECIPES / f"{name}.yaml"), "overrides": [override]}
            for name, override in (
                ("sft", f"data.eval={{test: {first}}}"),
                ("rarl", f"data.eval={{test: {second}}}"),
            )
        }
        tree = {"seeds": [0], "models": models, "reference": "rarl", "data": data}
        whole = tree | {"out": str(tmp_path / "out")}
        path.write_text(yaml.safe_dump(whole, sort_keys=False))
        read_plan(path, [])

    told = f"{{}}={other}: sft: data.eval.test is {dataset}, and both would be one data set"
    with pytest.raises(UserError, match=re.escape(told.format("rarl: data.eval.test"))):
        plan(dataset, other)
    with pytest.raises(UserError, match=re.escape(told.format("data.test"))):
        plan(dataset, dataset, test=str(other))
    plan(other, again, test=str(other))
    plan("rarl.tiny.dataset:write_test", "rarl.tiny.dataset:write_test", other=str(dataset))
    with pytest.raises(UserError, match=r"^data\.train: this is what the training data are called"):
        plan(other, other, train=str(dataset))
