"""What is read from a thinking without the image: the probabilities behind the reward `explains`,
against transformers, and the parts of a thinking that are not read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rarl.config import RewardConfig
from rarl.data.parquet import ImageKey, ParquetRows, image_key, write_examples
from rarl.grpo.policy import load_policy
from rarl.prompts import as_turn, plain_prompt, rederive_text, without_images
from rarl.reading import CLOSING, MAX_REPLIES, OPENING, Reader, possible_replies
from rarl.replies.tags import target_text
from rarl.replies.tricks import without_answers
from rarl.rewards.copies import shuffled
from rarl.rewards.thinking import explains_reward, fluency_reward
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import common_length
from rarl.samples import Sample
from rarl.schema import Example, Explained
from rarl.tiny.dataset import draw_examples
from rarl.tiny.phantoms import Facts, rationale_for
from tests.samples import reply_to


@pytest.mark.parametrize(
    ("thinking", "question", "answers", "kept"),
    [
        ("Two lungs. A round spot, low.", "Where is the lesion?", ["left"], None),
        ("The lesion is on the left.", "Where is the lesion?", ["left"], ""),
        ("Ribs are seen. So the answer is left.", "Where is it?", ["left"], "Ribs are seen."),
        ("Ribs are seen. It is on the right.", "Where is it?", ["left", "right"], "Ribs are seen."),
        ("The bowel is dilated.\nYes", "Is there ileus?", ["yes"], "The bowel is dilated."),
        ("A mass of 1.5 cm is seen.", "Is there a nodule?", ["yes"], None),
        ("No nodule.", "Is there a nodule?", ["no"], ""),
        ("", "Is there a nodule?", ["no"], ""),
    ],
)
def test_a_thinking_is_read_without_its_answers(
    thinking: str, question: str, answers: list[str], kept: str | None
) -> None:
    found = without_answers(thinking, question, answers)
    assert found == (thinking if kept is None else kept)


def pay(
    probabilities: list[float],
    priors: list[float],
    siblings: int = 3,
    text: str = "",
    **columns: Any,
) -> float | None:
    text = text or target_text("think", "Two lungs between ribs.", "chest")
    explained = Explained(probabilities, priors)
    known = {"form": ["think"], "explained": [explained]} | columns
    (value,) = explains_reward([""], [text], siblings=siblings, **known)
    return value


def test_silence_earns_half_and_so_does_a_guess_with_the_odds_of_the_reader() -> None:
    for prior in (0.1, 0.5, 0.9):
        assert pay([prior], [prior]) == 0.5
        won, lost = pay([1.0], [prior]), pay([0.0], [prior])
        assert won is not None and lost is not None
        assert prior * won + (1 - prior) * lost == pytest.approx(0.5)
    assert pay([1, 0, 0.5], [0.5, 0.5, 0.5], siblings=0) == 0.75
    assert pay([1, 0, 0.5], [0.5, 0.5, 0.5], siblings=1) == 0.5
    assert pay([1.0], [0.5], text="no tags") == 0.0
    assert pay([1.0], [0.5], form=["answer"]) is None
    assert pay([], []) is None
    assert pay([], [], explained=[None]) is None


def test_the_replies_that_compete() -> None:
    (organ,) = draw_examples("seen", 1, 3, "test")
    assert organ.options is not None
    replies = possible_replies(organ)
    assert replies[0] == f">{organ.answer}{CLOSING}"
    assert sorted(replies) == sorted(f">{one}{CLOSING}" for one in organ.options)
    closed = replace(organ, options=None, answer="No", answer_type="closed")
    assert possible_replies(closed) == [f">No{CLOSING}", f">yes{CLOSING}"]
    assert possible_replies(replace(closed, answer="a cyst", answer_type="open")) == [">a cyst"]
    many = replace(organ, options=tuple(f"grade {one}" for one in range(30)), answer="grade 25")
    assert possible_replies(many)[:2] == [f">grade 25{CLOSING}", f">grade 0{CLOSING}"]
    assert len(possible_replies(many)) == MAX_REPLIES


def test_where_replies_part() -> None:
    assert common_length([[5, 1, 2], [5, 3]]) == 1
    assert common_length([[5, 1], [5, 1, 2]]) == 1
    assert common_length([[7], [7], [7]]) == 0
    assert common_length([[5, 6, 1], [5, 6, 2], [5, 6, 1]]) == 2


def test_siblings_are_the_questions_about_one_image_of_one_data_set(tmp_path: Path) -> None:
    examples = draw_examples("seen", 20, 4, "test")
    other = [replace(one, dataset="other", id=f"other-{one.id}") for one in examples[:3]]
    write_examples(tmp_path / "all.parquet", [*examples, *other])
    found = ParquetRows(tmp_path / "all.parquet").questions_by_image()
    assert sum(map(len, found.values())) == 23
    for key, questions in found.items():
        assert {image_key(one) for one in questions} == {key}
        assert all(one.images == () and one.question and one.answer for one in questions)
    assert found[image_key(examples[0])][0] == replace(
        examples[0], images=(), rationale=None, organ=None, modality=None, boxes=None
    )


def test_siblings_are_found_where_no_row_names_its_data_set(tmp_path: Path) -> None:
    path = tmp_path / "unnamed.parquet"
    write_examples(path, draw_examples("seen", 6, 4, "test"))
    pq.write_table(pq.read_table(path).drop_columns(["dataset"]), path)
    rows = ParquetRows(path)
    assert {image_key(one) for one in rows.read(range(6))} == rows.questions_by_image().keys()


def test_the_base_model_reads_as_transformers_does_and_is_surer_after_true_findings(
    pool: SamplerPool, model_path: str, processor: Any
) -> None:
    """Whatever adapter is loaded. The probability of an option is that of its whole reply among the
    options' replies, which the first token that differs decides."""
    examples = draw_examples("seen", 12, 6, "test")
    opened = replace(examples[0], options=None, answer_type="open")
    true = [with_thinking(one, one.rationale or "") for one in [*examples, opened]]
    false = [with_thinking(one, other_rationale(one)) for one in examples]
    silent = [with_thinking(one, "Nothing to say.") for one in examples]
    siblings: dict[ImageKey, list[Example]] = {}
    for one in examples:
        siblings.setdefault(image_key(one), []).append(one)
    reader = Reader(pool, {"explains": RewardConfig(weight=1.0)}, model_path, 512, siblings)
    samples = [*true, *false, *silent]
    for reading in reader.start(samples, use_adapter=True):
        reading.write()
    # The same thinking about the same question, whose answer is another for another image.
    side = next(one for one in examples if one.answer in ("left", "right"))
    other = "right" if side.answer == "left" else "left"
    alike = [side, replace(side, id="other", image_id="other", answer=other)]
    pair = [reply_to(one, target_text("think", "A round spot.", "left")) for one in alike]
    for reading in Reader(pool, {"explains": RewardConfig(weight=1.0)}, model_path, 512).start(
        pair, use_adapter=True
    ):
        reading.write()
    for kind in ("probabilities", "priors"):
        both = [getattr(one.explained, kind)[0] for one in pair]
        assert sum(both) == pytest.approx(1.0, abs=2e-4), kind
    model = load_policy(model_path, "float32", "cpu", 8, 16, seed=0).get_base_model()
    for sample in samples[:16]:
        assert sample.explained is not None
        asked = reader.questions(sample.example)
        assert len(sample.explained.priors) == len(asked)
        for found, example in zip(sample.explained.probabilities, asked, strict=True):
            expected = by_transformers(model, processor, sample, example)
            assert found == pytest.approx(expected, abs=2e-3)
    # Organ and side, which the false findings tell otherwise.
    gains = [
        np.mean([gain(one) for one in part if one.example.answer_type == "choice"])
        for part in (true[:-1], silent, false)
    ]
    assert gains[0] > 0.5 and abs(gains[1]) < 0.1 and gains[2] < -0.2, gains


def test_fluent_thinking_earns_all_and_a_shuffle_falls_through_the_floor() -> None:
    text = target_text("think", "Two lungs between ribs.", "chest")

    def earned(logprob: float | None, floor: float | None = -2.0, **given: Any) -> float | None:
        known = {"form": ["think"], "thinking_logprob": [logprob]} | given
        (value,) = fluency_reward([""], [given.pop("text", text)], floor=floor, **known)
        return value

    assert earned(-0.5) == earned(-2.0) == 1.0
    assert earned(-3.0) == pytest.approx(np.exp(-1.0))
    assert earned(None) is None and earned(-3.0, None) is None
    assert earned(-0.5, form=["answer"]) is None
    assert earned(-0.5, text="no tags") == 0.0


def test_the_base_model_tells_language_from_its_words(
    pool: SamplerPool, model_path: str, processor: Any
) -> None:
    examples = draw_examples("seen", 12, 6, "test")
    told = [one.rationale or "" for one in examples]
    settings = {"fluency": RewardConfig(weight=0.0)}
    reader, plan = Reader(pool, settings, model_path, 512), plain_prompt()
    found = []
    for texts in (told, list(map(shuffled, told))):
        samples = [
            replace(with_thinking(one, text), prompt=plan(processor, one))
            for one, text in zip(examples, texts, strict=True)
        ]
        for reading in reader.start(samples, use_adapter=True):
            reading.write()
        found.append([one.thinking_logprob or 0.0 for one in samples])
    model = load_policy(model_path, "float32", "cpu", 8, 16, seed=0).get_base_model()
    for example, text, logprob in zip(examples[:4], told, found[0], strict=False):
        prompt = without_images(plan(processor, example).text) + "<think"
        ids, reply = (processor.tokenizer(one).input_ids for one in (prompt, f">{text}"))
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*ids, *reply]])).logits[0, len(ids) - 1 : -1]
        own = logits.log_softmax(-1)[range(len(reply)), reply].mean()
        assert logprob == pytest.approx(float(own), abs=1e-3)
    assert min(found[0]) > max(found[1]) + 1, found


def gain(sample: Sample) -> float:
    assert sample.explained is not None
    return sample.explained.probabilities[0] - sample.explained.priors[0]


def with_thinking(example: Example, thinking: str) -> Sample:
    return reply_to(example, target_text("think", thinking, example.answer))


def other_rationale(example: Example) -> str:
    """Another organ's signs; a lesion on the other side, or one where there is none."""
    organ = "knee" if example.organ != "knee" else "chest"
    return rationale_for(Facts(organ, "right" if "left" in (example.rationale or "") else "left"))


def by_transformers(model: Any, processor: Any, sample: Sample, example: Example) -> float:
    answers = [example.answer, *([sample.reply.answer or ""] if example == sample.example else [])]
    kept = without_answers(sample.reply.thinking or "", example.question, answers)
    prompt = as_turn(processor, rederive_text(example, kept), images=()) + OPENING
    start = processor.tokenizer(prompt).input_ids
    replies = [processor.tokenizer(one).input_ids for one in possible_replies(example)]
    tokens = []
    for reply in replies:
        ids = torch.tensor([[*start, *reply]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(start) - 1 : -1]
        tokens.append(torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(reply)[:, None]))
    if len(replies) == 1:
        return float(tokens[0].exp().mean())
    common = common_length(replies)
    first = torch.stack([one[common, 0] for one in tokens]).exp()
    return float(first[0] / first.sum())
