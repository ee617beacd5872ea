"""The tiny world: phantoms, data sets, and the base model that ships."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from rarl.data.check import find_fault
from rarl.data.prepare import prepare_example
from rarl.prompts import render_prompt
from rarl.rewards.accuracy import is_correct
from rarl.rewards.parsing import parse_reply
from rarl.schema import Example
from rarl.tiny.build import build_base
from rarl.tiny.dataset import draw_examples
from rarl.tiny.model import SPECIAL_TOKENS
from rarl.tiny.phantoms import Facts, draw_image, outline


def test_data_sets_are_functions_of_domain_seed_and_split() -> None:
    assert draw_examples("seen", 30, 1, "train") == draw_examples("seen", 30, 1, "train")
    images = {e.image for e in draw_examples("seen", 300, 1, "train")}
    for domain, seed, split in (("seen", 2, "train"), ("seen", 1, "test"), ("unseen", 1, "train")):
        assert not images & {e.image for e in draw_examples(domain, 300, seed, split)}  # type: ignore[arg-type]


def test_examples_are_sound_and_varied() -> None:
    examples = draw_examples("seen", 900, 0, "train")
    assert len({e.id for e in examples}) == 900
    assert all(find_fault(e) is None for e in examples[:100])
    kinds = Counter(e.id.rsplit("-", 1)[1] for e in examples)
    assert min(kinds.values()) > 200
    answers = Counter(e.answer for e in examples)
    assert {"chest", "brain", "yes", "no", "left", "right"} == set(answers)
    assert abs(answers["left"] - answers["right"]) < 50
    for e in examples:
        assert e.rationale
        spot = None if "No round spot" in e.rationale else ("left" if "left half" in e.rationale else "right")
        if e.answer in ("yes", "no"):
            assert (e.answer == "yes") == (spot is not None)
        elif e.answer in ("left", "right"):
            assert e.answer == spot
        else:
            assert e.answer == e.organ


def test_the_lesion_is_where_the_facts_say() -> None:
    """Measured on the pixels: what a lesion adds lies in its half."""
    for side, half in (("left", slice(0, 56)), ("right", slice(56, 112))):
        for organ in ("chest", "brain"):
            bare = outline(organ, np.random.default_rng(3))
            seen = draw_image(Facts(organ, side), "seen", np.random.default_rng(3)) / 255
            added = np.clip(seen - bare, 0.3, None) - 0.3
            assert added[:, half].sum() > 0.9 * added.sum()


def test_the_base_is_a_plain_checkpoint_of_two_million_parameters(model_path: str, processor: Any) -> None:
    from transformers import AutoModelForImageTextToText, Qwen2VLForConditionalGeneration

    model = AutoModelForImageTextToText.from_pretrained(model_path)
    assert isinstance(model, Qwen2VLForConditionalGeneration)
    assert 1.5e6 < sum(p.numel() for p in model.parameters()) < 2.5e6
    assert sum(f.stat().st_size for f in Path(model_path).iterdir()) < 5e6
    for token in SPECIAL_TOKENS:
        assert processor.tokenizer.convert_tokens_to_ids(token) is not None
        assert len(processor.tokenizer(token).input_ids) == 1
    text = "Läsion – ≥ 3 µm? 肺"
    assert processor.tokenizer.decode(processor.tokenizer(text).input_ids) == text


def greedy(model: Any, processor: Any, examples: list[Example]) -> list[str]:
    """transformers' own generation, independent of vLLM."""
    replies = []
    for start in range(0, len(examples), 50):
        part = examples[start : start + 50]
        prompts = [prepare_example(e, processor, render_prompt).prompt for e in part]
        images = [Image.open(io.BytesIO(e.image)).convert("RGB") for e in part]
        batch = processor(text=prompts, images=images, padding=True, padding_side="left", return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(**batch, max_new_tokens=48, do_sample=False)
        replies += processor.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return replies


def accuracy(replies: list[str], examples: list[Example]) -> float:
    right = [is_correct(parse_reply(r).answer, e.answer, e.options) for r, e in zip(replies, examples, strict=True)]
    return sum(right) / len(right)


@pytest.mark.slow
def test_a_rebuilt_base_is_the_shipped_one_or_like_it(model_path: str, processor: Any, tmp_path: Path) -> None:
    """Equal to the bit on the kind of processor it was built on; elsewhere as well formed and as uncertain."""
    from transformers import AutoModelForImageTextToText

    build_base(0, tmp_path / "rebuilt")
    assert (tmp_path / "rebuilt" / "tokenizer.json").read_text() == (Path(model_path) / "tokenizer.json").read_text()
    config = json.loads((tmp_path / "rebuilt" / "config.json").read_text())
    assert config == json.loads((Path(model_path) / "config.json").read_text())
    shipped = load_file(Path(model_path) / "model.safetensors")
    rebuilt = load_file(tmp_path / "rebuilt" / "model.safetensors")
    if all(torch.equal(shipped[name], rebuilt[name]) for name in shipped):
        return
    examples = draw_examples("seen", 300, 11, "test")
    results = []
    for path in (model_path, str(tmp_path / "rebuilt")):
        model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
        replies = greedy(model, processor, examples)
        assert np.mean([parse_reply(r).well_formed for r in replies]) > 0.9
        results.append(accuracy(replies, examples))
    assert abs(results[0] - results[1]) < 0.2
    assert 0.35 < results[1] < 0.85
