"""The tiny world: phantoms, data sets, and the base model that ships."""

from __future__ import annotations

import io
import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rarl.config import PromptsConfig
from rarl.data.check import RowCheck
from rarl.data.prepared import prepare_example
from rarl.prompts import PromptPlan, as_turn, evaluation_prompts, read_families, rederive_text
from rarl.replies.grading import is_correct
from rarl.replies.tags import parse_reply
from rarl.schema import Example
from rarl.tiny.build import FAMILIES, STEPS, train_vision, untrained
from rarl.tiny.dataset import draw_examples
from rarl.tiny.model import SPECIAL_TOKENS
from rarl.tiny.phantoms import ORGANS, Facts, draw_image, outline


def test_data_sets_are_functions_of_domain_seed_and_split() -> None:
    assert draw_examples("seen", 30, 1, "train") == draw_examples("seen", 30, 1, "train")
    images = {e.images[0] for e in draw_examples("seen", 300, 1, "train")}
    for domain, seed, split in (("seen", 2, "train"), ("seen", 1, "test"), ("unseen", 1, "train")):
        assert not images & {e.images[0] for e in draw_examples(domain, 300, seed, split)}  # type: ignore[arg-type]


def test_examples_are_sound_and_varied() -> None:
    examples = draw_examples("seen", 900, 0, "train")
    assert len({e.id for e in examples}) == 900
    assert all(RowCheck().facts_of(e, {}) for e in examples[:100])
    kinds = Counter(e.id.rsplit("-", 1)[1] for e in examples)
    assert min(kinds.values()) > 200
    answers = Counter(e.answer for e in examples)
    assert {*ORGANS, "yes", "no", "left", "right"} == set(answers)
    assert abs(answers["left"] - answers["right"]) < 50
    for e in examples:
        assert e.rationale
        spot = (
            None
            if "No round spot" in e.rationale
            else ("left" if "left half" in e.rationale else "right")
        )
        if e.answer in ("yes", "no"):
            assert (e.answer == "yes") == (spot is not None)
        elif e.answer in ("left", "right"):
            assert e.answer == spot
        else:
            assert e.answer == e.organ


def test_the_lesion_is_where_the_facts_say() -> None:
    """Measured on the pixels: what a lesion adds lies in its half."""
    for side, half in (("left", slice(0, 56)), ("right", slice(56, 112))):
        for organ in ORGANS:
            bare = outline(organ, np.random.default_rng(3))
            seen = draw_image(Facts(organ, side), "seen", np.random.default_rng(3)) / 255
            added = np.clip(seen - bare, 0.3, None) - 0.3
            assert added[:, half].sum() > 0.9 * added.sum()


def test_the_base_is_a_plain_checkpoint_of_two_million_parameters(
    model_path: str, processor: Any
) -> None:
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


def greedy(model: Any, processor: Any, examples: list[Example], plan: PromptPlan) -> list[str]:
    """transformers' own generation, independent of vLLM."""
    replies = []
    for start in range(0, len(examples), 50):
        part = examples[start : start + 50]
        prompts = [prepare_example(e, processor, plan).prompt.text for e in part]
        images = [Image.open(io.BytesIO(e.images[0])).convert("RGB") for e in part]
        batch = processor(
            text=prompts, images=images, padding=True, padding_side="left", return_tensors="pt"
        )
        with torch.no_grad():
            ids = model.generate(**batch, max_new_tokens=48, do_sample=False)
        replies += processor.batch_decode(
            ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
    return replies


@pytest.mark.long
def test_the_shipped_base_comes_from_this_code(model_path: str, processor: Any) -> None:
    """Tokenizer and shapes are rebuilt whole. Of the training the first steps are: their losses are
    those on record, up to what another processor's rounding makes of them. `rarl tiny build`
    repeats all of it."""
    model, rebuilt = untrained(0)
    assert rebuilt.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert rebuilt.chat_template == processor.chat_template
    shipped = json.loads((Path(model_path) / "config.json").read_text())
    mine = json.loads(model.config.to_json_string(use_diff=False))
    for part in ("text_config", "vision_config"):
        assert {k: mine[part][k] for k in shipped[part] if k != "dtype"} == {
            k: v for k, v in shipped[part].items() if k != "dtype"
        }
    recorded = json.loads((Path(model_path) / "losses.json").read_text())
    assert len(recorded) == STEPS
    losses = list(islice(train_vision(model, rebuilt, 0), 12))
    assert losses == pytest.approx(recorded[:12], rel=0.02)


@pytest.mark.slow
def test_the_base_is_well_formed_and_uncertain_under_every_prompt(
    model_path: str, processor: Any
) -> None:
    """transformers' own greedy generation: it knows how to reply to each family, and is often
    wrong."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(model_path, dtype=torch.float32).eval()
    examples = draw_examples("seen", 60, 11, "test")
    results = {}
    for family in FAMILIES:
        plan = evaluation_prompts(PromptsConfig(eval=family))
        replies = [
            parse_reply(r, read_families()[family].form)
            for r in greedy(model, processor, examples, plan)
        ]
        assert np.mean([r.well_formed for r in replies]) > 0.9, family
        right = [
            is_correct(r.answer, e.answer, e.options)
            for r, e in zip(replies, examples, strict=True)
        ]
        results[family] = np.mean(right)
    assert min(results.values()) > 0.3 and max(results.values()) < 0.85, results


@pytest.mark.slow
def test_the_base_can_follow_reasoning_without_the_image(model_path: str, processor: Any) -> None:
    """What the reward `consistency` builds on: from a true rationale alone the true answer
    follows."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(model_path, dtype=torch.float32).eval()
    examples = draw_examples("seen", 90, 12, "test")
    texts = [as_turn(processor, rederive_text(e, e.rationale or ""), images=()) for e in examples]
    batch = processor(text=texts, padding=True, padding_side="left", return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**batch, max_new_tokens=16, do_sample=False)
    replies = processor.batch_decode(
        ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
    )
    right = [
        is_correct(parse_reply(r, "answer").answer, e.answer, e.options)
        for r, e in zip(replies, examples, strict=True)
    ]
    assert np.mean(right) > 0.9
