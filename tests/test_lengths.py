"""Lengths of rows before anything is sampled: they are what the processor makes, and the longest is
named once."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from rarl.commands.checked_data import check_data
from rarl.commands.resolve import Setup, resolve
from rarl.config import Config, PromptsConfig, load_config
from rarl.data.check import FACTS, CheckedRows, RowCheck
from rarl.data.lengths import LengthRule, measured_lengths, training_lengths
from rarl.data.parquet import write_examples
from rarl.data.prepared import prepare_example
from rarl.display import Display
from rarl.errors import UserError
from rarl.prompts import PromptPlan, training_prompts
from rarl.schema import Example
from tests.runs import REPOSITORY

SIZES = [(112, 112), (512, 300), (30, 1000), (8, 8)]


@pytest.fixture
def varied(examples: list[Example]) -> list[Example]:
    """Questions of several lengths about images of several sizes."""
    found = []
    for number, (width, height) in enumerate(SIZES):
        out = io.BytesIO()
        Image.effect_noise((width, height), 50).save(out, format="PNG")
        question = examples[number].question + " Is it, really?" * number
        changes: dict[str, Any] = {"images": (out.getvalue(),), "question": question}
        found.append(replace(examples[number], boxes=None, **changes))
    return found


def every_wording(plan: PromptPlan, example: Example) -> list[PromptPlan]:
    """One plan for each wording that may be drawn."""
    found = []
    for name in (name for name, weight in plan.weights.items() if weight):
        family = plan.families[name]
        for wording in family.wordings:
            alone = family.model_copy(update={"wordings": [wording]})
            found.append(PromptPlan({name: alone}, {name: 1.0}, 0))
    return found


@pytest.mark.parametrize("max_pixels", [None, 6000])
def test_a_rows_lengths_are_those_of_the_longest_prompt_that_may_be_drawn(
    varied: list[Example], processor: Any, model_path: str, max_pixels: int | None
) -> None:
    weights = {"explain": 1.0, "short": 1.0, "open": 0.5, "lettered": 1.0, "plain": 0.0}
    plan = training_prompts(PromptsConfig(train=weights), seed=0)
    rule = pickle.loads(pickle.dumps(LengthRule(model_path, max_pixels, plan.longest, 64)))
    for example in varied:
        prepared = [
            prepare_example(example, processor, one, max_pixels)
            for one in every_wording(plan, example)
        ]
        width, height = Image.open(io.BytesIO(example.images[0])).size
        found = rule.lengths(example, [(height, width)], processor)
        longest = max(len(one.prompt_token_ids) for one in prepared)
        image_token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
        image = int((prepared[0].prompt_token_ids == image_token).sum())
        assert tuple(found) == (longest, image, longest + 64)


def test_facts_of_rows_come_from_one_look_at_each_image(
    tmp_path: Path, varied: list[Example], model_path: str
) -> None:
    long = io.BytesIO()
    Image.new("RGB", (3000, 10)).save(long, format="PNG")
    path = tmp_path / "data.parquet"
    again = [
        replace(varied[0], id="again"),
        replace(varied[1], id="long", images=(long.getvalue(),)),
    ]
    write_examples(path, [*varied, *again])
    seen: list[bytes] = []

    def fingerprint(encoded: bytes, picture: Image.Image) -> tuple[str, bytes]:
        seen.append(encoded)
        return f"{picture.width}", b"look"

    plan = training_prompts(PromptsConfig(), seed=0)
    check = RowCheck(fingerprint, LengthRule(model_path, None, plan.longest, 64))
    rows = list(check.facts_in(str(path), list(range(6))))
    assert len(seen) == 5
    assert rows[4] == rows[0] | {"row": 4}
    assert "aspect ratio" in rows[5]["reason"] and rows[5]["needed"] is None
    assert pa.Table.from_pylist(rows, schema=FACTS)["row"].to_pylist() == list(range(6))


@pytest.fixture
def checked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are checked in this process, without Ray."""

    def check_rows(path: str, on_bad_row: str, check: RowCheck) -> CheckedRows:
        from rarl.data.parquet import ParquetRows

        rows = list(range(len(ParquetRows(path))))
        facts = pa.Table.from_pylist(list(check.facts_in(path, rows)), schema=FACTS)
        return CheckedRows(np.array(rows), [], facts)

    monkeypatch.setattr("rarl.commands.checked_data.check_rows", check_rows)


def configured(tmp_path: Path, varied: list[Example], *overrides: str) -> Config:
    """Row 3 of the training data has the longest question, row 1 of the test data the longest of
    all."""
    train, test = tmp_path / "train.parquet", tmp_path / "test.parquet"
    write_examples(train, varied)
    long = replace(varied[1], question="Where " * 60)
    write_examples(test, [varied[0], long, replace(long, id="not asked", question="Why " * 99)])
    data = [f"data.train={train}", f"data.eval={{mine: {test}}}", f"run_dir={tmp_path / 'run'}"]
    return load_config(REPOSITORY / "configs/demo.yaml", [*data, *overrides])


def setup_of(tmp_path: Path, varied: list[Example], length: int, *overrides: str) -> Setup:
    """Whose engines take so many tokens, which no look at the data has questioned."""
    enough = "rollout.max_model_length=2048"
    setup = resolve(configured(tmp_path, varied, enough, *overrides))
    rollout = setup.config.rollout.model_copy(update={"max_model_length": length})
    return replace(setup, config=setup.config.model_copy(update={"rollout": rollout}))


def test_the_longest_row_of_all_data_is_named_once_with_what_would_do(
    tmp_path: Path, varied: list[Example], checked_here: None, processor: Any
) -> None:
    setup = setup_of(tmp_path, varied, 90, "evaluation.max_examples=2")
    data = {"train": str(setup.train_data), **setup.eval_data}
    check = partial(check_data, display=Display(), data=data, families=["plain", "reason"])
    with pytest.raises(UserError) as caught:
        check(setup, engines=True)
    told = str(caught.value)
    assert told.startswith(f"{setup.eval_data['mine']}: row 1 is the longest: example ")
    assert "\n" not in told
    enough = int(told.split("set rollout.max_model_length=")[1].split(",")[0])
    rule = measured_lengths(setup.config, setup.model_path, ["plain", "reason"])
    longest = replace(varied[1], question="Where " * 60)
    size = Image.open(io.BytesIO(longest.images[0])).size
    assert enough == rule.lengths(longest, [(size[1], size[0])], processor).needed
    check(setup, engines=False)  # nothing is asked
    for length, fits in ((enough, True), (enough - 1, False)):
        setup = setup_of(tmp_path, varied, length, "evaluation.max_examples=2")
        if fits:
            check(setup, engines=True)
        else:
            with pytest.raises(UserError, match="1 of 6 rows do not fit"):
                check(setup, engines=True)


def test_a_start_whose_rows_do_not_fit_is_refused_at_once_and_leaves_nothing(
    tmp_path: Path, varied: list[Example], checked_here: None
) -> None:
    """In the words of the check of all rows, of which those that are not measured are no part."""
    few = "evaluation.max_examples=2"
    short = configured(tmp_path, varied, few, "rollout.max_model_length=90")
    with pytest.raises(UserError) as refused:
        resolve(short)
    assert not (tmp_path / "run").exists()
    setup = setup_of(tmp_path, varied, 90, few)
    data = {"train": str(setup.train_data), **setup.eval_data}
    with pytest.raises(UserError) as checked:
        check_data(setup, Display(), data, [short.prompts.eval], engines=True)
    assert str(refused.value) == str(checked.value)


def test_a_row_of_several_images_that_does_not_fit_is_named_and_counted(
    tmp_path: Path, varied: list[Example], processor: Any, model_path: str
) -> None:
    """Before training starts; a bound of the pixels, which all its images share, makes it fit."""
    pictures = [one.images[0] for one in varied[:3]]
    several = [
        replace(varied[0], id=f"of {count}", images=tuple(pictures[:count]))
        for count in (0, 1, 2, 3)
    ]
    few = ["evaluation.max_examples=1", "prompts.train={plain: 1}", "prompts.eval=plain"]
    config = configured(tmp_path, several, *few)
    rule, sizes = training_lengths(config, model_path), [(h, w) for w, h in SIZES]
    needed = [rule.lengths(one, sizes[: len(one.images)], processor).needed for one in several]
    assert needed == sorted(needed)
    short = f"rollout.max_model_length={needed[2] - 1}"
    with pytest.raises(UserError) as refused:
        resolve(configured(tmp_path, several, *few, short))
    told = str(refused.value)
    assert told.startswith(f"{config.data.train}: row 3 is the longest: example 'of 3'")
    assert f"2 of 5 rows do not fit rollout.max_model_length={needed[2] - 1}" in told
    assert f"set rollout.max_model_length={needed[3]}, or lower data.max_pixels" in told
    assert "\n" not in told
    assert resolve(configured(tmp_path, several, *few, short, "data.max_pixels=9408"))


def test_what_is_imitated_counts_as_the_reply(
    tmp_path: Path, varied: list[Example], processor: Any
) -> None:
    setup = setup_of(tmp_path, varied, 2048, "method=sft", "prompts.train={plain: 1}")
    lengths: Callable[..., Any] = training_lengths(setup.config, setup.model_path).lengths
    short, long = (replace(varied[0], rationale=text) for text in ("A spot.", "A spot. " * 30))
    bare = replace(varied[0], rationale=None)
    needed = [lengths(one, [(112, 112)], processor).needed for one in (bare, short, long)]
    assert needed == sorted(needed) and needed[2] > needed[1] + 60
