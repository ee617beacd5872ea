"""The shipped 2B recipe at its true size: two steps of a random Qwen2-VL-2B in bfloat16 on a CPU,
in which questions about one image of VQA-RAD, about three and about none stand side by side.

`make test-2b` runs it, in minutes, with 16 GB of memory. RARL_QWEN2_TOKENIZER names the
`tokenizer.json` of Qwen2-VL; without it the model speaks the tiny model's words, with a head of
151,936 all the same."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import computes_bfloat16
from safetensors.torch import load_file
from step import random_2b
from transformers import AutoProcessor, Qwen2TokenizerFast

from rarl.data.parquet import ParquetRows, write_examples
from rarl.prepare.convert import prepare_dataset
from rarl.schema import Example
from tests.runs import QWEN, RARL, REPOSITORY, environment

SIZES = [
    "train.steps=2",
    "train.checkpoint_every=2",
    "train.prompts_per_step=4",
    "rollout.group_size=4",
    "rollout.max_completion_tokens=24",
    "data.max_pixels=200704",
    # Of four questions, what is usual tells all.
    "train.on_silent_reward=warn",
    # Beside the recipe's rewards, since no reply of a random model has a form.
    "rewards.cases:chance_reward=1",
]
OTHER_IMAGES = 2  # beside the first, of a question about three


@pytest.mark.long
@pytest.mark.engines
@pytest.mark.skipif(not computes_bfloat16(), reason="this CPU has no bfloat16 instructions")
def test_the_2b_recipe_trains_on_real_images(
    vqa_rad: Path, model_path: str, tmp_path: Path
) -> None:
    """The shared prefix is what trains, the sampler's log-probs are the policy's up to bfloat16,
    and an adapter of true size, which has moved, is written."""
    random_2b(tmp_path / "2b", speaking_qwen2(tmp_path / "words", model_path))
    prepare_dataset("vqa-rad", vqa_rad, tmp_path / "data", "image-disjoint", facts="siblings")
    trained = tmp_path / "mixed.parquet"
    assert write_examples(trained, mixed(ParquetRows(tmp_path / "data/train.parquet"))) == 4
    run = tmp_path / "run"
    paths = [f"model.path={tmp_path / '2b'}", f"data.train={trained}", f"run_dir={run}"]
    command = [RARL, "train", str(QWEN), *paths, *SIZES, "device=cpu", "data.eval={}"]
    # Where the reward by chance is found.
    own = environment() | {"PYTHONPATH": str(REPOSITORY / "bench")}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=own, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["shared_prefix"] for row in rows] == [1, 1]
    assert max(row["sampler_mismatch"] for row in rows) < 0.05, "as bfloat16 rounds"
    adapter = load_file(run / "adapter/adapter_model.safetensors")
    assert len(adapter) == 2 * 7 * 28, "A and B of seven layers in each of 28"
    moved = [bool(torch.any(value != 0)) for name, value in adapter.items() if "lora_B" in name]
    assert len(moved) == 7 * 28 and all(moved), "B begins at zero"
    print({key: rows[-1][key] for key in ("sampler_mismatch", "seconds/step", "seconds/publish")})


def mixed(rows: ParquetRows) -> list[Example]:
    """One step's questions: two about an image each, one about three and one about none, which
    tells in words what another's image shows."""
    first, second, third, fourth = rows.read(range(4))
    more = [one.images[0] for one in rows.read(range(40)) if one.images != first.images]
    several = replace(
        first,
        id="three-images",
        images=(first.images[0], *dict.fromkeys(more))[: 1 + OTHER_IMAGES],
        image_labels=("Current", "Prior", "Other view"),
    )
    told = replace(fourth, id="in-words", images=(), image_id="in-words", question="Is it raining?")
    return [several, second, third, told]


def speaking_qwen2(folder: Path, model_path: str) -> Path:
    """Returns a folder with Qwen2's own vocabulary in the tiny model's processor, or the tiny
    model's where no vocabulary is named."""
    place = os.environ.get("RARL_QWEN2_TOKENIZER")
    if not place:
        return Path(model_path)
    processor = AutoProcessor.from_pretrained(model_path)
    template = processor.tokenizer.chat_template or processor.chat_template
    processor.tokenizer = Qwen2TokenizerFast(
        tokenizer_file=place, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    processor.tokenizer.chat_template = processor.chat_template = template
    processor.image_processor.size = {"shortest_edge": 3136, "longest_edge": 12_845_056}
    processor.save_pretrained(folder)
    return folder
