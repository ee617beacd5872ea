"""What `rarl eval` understands by its arguments, and the controls."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rarl.commands.evaluate import Way, ways_to_measure
from rarl.commands.resolve import require_same_run
from rarl.commands.targets import name_data_sets, read_judge, read_target
from rarl.config import load_config
from rarl.data.images import blank_image, rows_with_other_images
from rarl.errors import UserError
from rarl.prompts import plain_prompt, without_images
from rarl.schema import Example
from tests.runs import REPOSITORY

DEMO = str(REPOSITORY / "configs" / "demo.yaml")


def test_data_sets_get_names_that_tell_them_apart() -> None:
    paths = [
        "data/vqa-rad/test.parquet",
        "other/ct.parquet",
        "more/ct.parquet",
        "rarl.tiny.dataset:write_seen_test",
    ]
    assert list(name_data_sets(paths)) == ["vqa-rad-test", "ct", "ct-2", "seen-test"]


def test_a_configuration_with_data_sets_overrides_and_a_judge(tmp_path: Path) -> None:
    asked = read_target(
        DEMO, ["x/y.parquet", "rollout.num_actors=3"], "http://127.0.0.1:8000/judge", tmp_path
    )
    assert asked.config.data.eval == {"y": str(Path("x/y.parquet").absolute())}
    assert asked.config.rollout.num_actors == 3
    assert asked.config.run_dir == str(tmp_path)
    judge = asked.config.judge
    assert (judge.backend, judge.url, judge.evaluate) == (
        "serve",
        "http://127.0.0.1:8000/judge",
        True,
    )


def test_a_model_with_an_adapter_takes_its_shape_from_the_adapter(
    tmp_path: Path, model_path: str
) -> None:
    adapter = tmp_path / "run" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 32}))
    asked = read_target(f"{model_path}+{tmp_path / 'run'}", ["a/test.parquet"], "rules", None)
    assert (asked.config.model.lora.rank, asked.config.model.lora.alpha) == (4, 32)
    assert asked.adapter == adapter
    assert asked.config.run_dir == str(Path("runs/eval-base-run").absolute())
    assert asked.config.judge.evaluate and asked.config.judge.backend == "rules"


@pytest.mark.parametrize(
    ("target", "rest", "message"),
    [
        ("some/model", [], "no such run directory here; if it is a model on the Hub, name the"),
        ("{tmp}/none", [], "/none: no such run directory, configuration or model .looked for /"),
        ("none", ["a.parquet"], "none: no such run directory, configuration or model"),
        ("tests/none", ["a.parquet"], "tests/none: no such run directory, configuration or model"),
        ("{tmp}", [], "holds neither config.yaml"),
        (
            "some/model+{tmp}",
            ["a.parquet"],
            "neither a finished run directory nor a folder with a PEFT adapter",
        ),
        ("some/model", ["a.parquet", "rolout.num_actors=2"], "did you mean 'rollout'"),
        (DEMO, ["prompts.evl=none"], "did you mean 'prompts.eval'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, target: str, rest: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_target(target.format(tmp=tmp_path), rest, "", None)


def test_ways_are_every_prompt_with_and_without_each_control() -> None:
    ways = ways_to_measure("none,reason", "text,blank", 4, True)
    assert [way.suffix("reason") for way in ways] == [
        "-none",
        "",
        "-none-blank",
        "-none-text",
        "-none-samples4",
        "-blank",
        "-text",
        "-samples4",
        "-none-options",
    ]
    assert ways_to_measure("", "", 1, False) == [Way()]
    with pytest.raises(UserError, match="--control dark: unknown; known are blank, shuffled, text"):
        ways_to_measure("", "dark", 1, False)


def test_a_measurement_may_not_change_the_run() -> None:
    own = load_config(DEMO)
    require_same_run(
        load_config(
            DEMO, ["rollout.num_actors=5", "data.eval.more=x.parquet", "prompts.eval=none"]
        ),
        own,
    )
    with pytest.raises(UserError, match=r"evaluation.max_examples=5: the run was made with None"):
        require_same_run(load_config(DEMO, ["evaluation.max_examples=5"]), own)
    with pytest.raises(
        UserError, match=r"data.eval.phantoms-seen=/.*/x.parquet: the run knows .* by that name"
    ):
        require_same_run(load_config(DEMO, ["data.eval.phantoms-seen=x.parquet"]), own)


def test_a_blank_image_has_the_size_and_one_colour(examples: list[Example]) -> None:
    image = Image.open(io.BytesIO(blank_image(examples[0].images[0])))
    assert image.size == Image.open(io.BytesIO(examples[0].images[0])).size
    assert image.getcolors() == [(image.width * image.height, (128, 128, 128))]


def test_shuffled_images_are_always_those_of_another_question() -> None:
    ids = [f"image-{i // 3}" for i in range(60)]
    others = rows_with_other_images(ids, seed=3)
    given = [ids[row] for row in others]
    assert all(mine != other for mine, other in zip(ids, given, strict=True))
    assert set(given) == set(ids), "each image is used for one other"
    assert all(len({given[i] for i in range(k, k + 3)}) == 1 for k in range(0, 60, 3)), (
        "questions stay together"
    )
    assert np.array_equal(others, rows_with_other_images(ids, seed=3))
    with pytest.raises(UserError, match="at least two images"):
        rows_with_other_images(["a", "a"])


def test_the_text_control_takes_out_the_image_and_nothing_else(
    processor: object, examples: list[Example]
) -> None:
    prompt = plain_prompt()(processor, examples[0]).text
    bare = without_images(prompt)
    assert "<|image_pad|>" not in bare and examples[0].question in bare
    assert len(prompt) - len(bare) == len("<|vision_start|><|image_pad|><|vision_end|>")
    assert without_images(bare) == bare
    with pytest.raises(UserError, match="image that cannot be left out"):
        without_images(prompt.replace("<|vision_end|>", ""))


def test_a_judge_with_an_address_is_not_taken_for_the_rules() -> None:
    with pytest.raises(UserError, match="the rules ask nobody; add judge"):
        read_judge(["judge.url=http://x"])
    assert read_judge(["judge.url=http://x", "judge.backend=serve"]).backend == "serve"
