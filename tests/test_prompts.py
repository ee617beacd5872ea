"""Prompts: the wordings as data, who gets which, and that the processor sees what it would write
itself."""

from __future__ import annotations

import io
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rarl.config import PromptsConfig
from rarl.data.prepared import prepare_example
from rarl.errors import UserError
from rarl.prompts import (
    BUILT_IN,
    FORM_LINES,
    LOOK,
    YES_OR_NO,
    Family,
    evaluation_prompts,
    plain_prompt,
    question_text,
    read_families,
    rederive_text,
    training_prompts,
)
from rarl.replies.tags import parse_reply, target_text
from rarl.schema import Example

DIVERSE = PromptsConfig(train={"explain": 2, "short": 1, "open": 1, "structured": 0})
CHOICE = Example(
    "c", (), "i", "Which organ?", "liver", "choice", options=("spleen", "liver", "kidney")
)
YES_NO = Example("y", (), "i", "Is it normal?", "No", "closed")


def test_every_family_asks_for_a_reply_that_its_own_form_accepts() -> None:
    families = read_families()
    known = {
        "plain",
        "explain",
        "short",
        "open",
        "structured",
        "none",
        "reason",
        "lettered",
        "look",
    }
    assert known == set(families)
    assert all(
        len(families[name].wordings) > 1 for name in ("explain", "short", "open", "structured")
    )
    for name, family in families.items():
        for wording in family.wordings:
            text = question_text(CHOICE, family, wording)
            assert text.startswith(CHOICE.question) and text.endswith(FORM_LINES[family.form]), name
            assert wording in text
            assert parse_reply(
                target_text(family.form, "A liver.", "liver"), family.form
            ).well_formed


def test_options_are_listed_lettered_or_hidden() -> None:
    families = read_families()
    assert "Options: spleen, liver, kidney." in question_text(CHOICE, families["plain"], "")
    assert "A) spleen\nB) liver\nC) kidney" in question_text(CHOICE, families["lettered"], "")
    assert "spleen" not in question_text(CHOICE, families["open"], "")
    lettered = families["lettered"]
    assert "letter" in question_text(CHOICE, lettered, lettered.wordings[0])
    assert "letter" not in question_text(YES_NO, lettered, lettered.wordings[0]), "it has none"
    assert YES_OR_NO in question_text(YES_NO, families["plain"], "")
    assert YES_OR_NO not in question_text(YES_NO, families["open"], "")
    assert YES_OR_NO not in question_text(replace(YES_NO, answer="both"), families["plain"], "")


def test_training_draws_by_weight_and_is_a_function_of_seed_step_and_example() -> None:
    plan = training_prompts(DIVERSE, seed=3)
    drawn = [plan.choose(replace(CHOICE, id=f"example-{i}"), step=i // 16) for i in range(4000)]
    again = pickle.loads(pickle.dumps(plan))
    asked = [replace(CHOICE, id=f"example-{i}") for i in range(4000)]
    assert drawn == [again.choose(one, step=i // 16) for i, one in enumerate(asked)]
    counts = Counter(name for name, _ in drawn)
    assert counts.keys() == {"explain", "short", "open"}
    assert counts["explain"] / 4000 == pytest.approx(0.5, abs=0.04)  # five standard deviations
    assert {number for name, number in drawn if name == "explain"} == {0, 1, 2}
    assert drawn != [
        training_prompts(DIVERSE, seed=4).choose(one, i // 16) for i, one in enumerate(asked)
    ]
    assert len({plan.choose(asked[1], step) for step in range(50)}) > 3, (
        "another prompt in another epoch"
    )


def test_measurements_use_the_first_wording_of_one_family(processor: Any) -> None:
    plan = evaluation_prompts(PromptsConfig(train={"short": 1}, eval="reason"))
    prompt = plan(processor, CHOICE)
    assert (prompt.wording, prompt.form) == ("reason/0", "think")
    assert read_families()["reason"].wordings[0] in prompt.text


def test_prompt_text_and_token_ids_equal_the_processors_own(
    processor: Any, examples: list[Example]
) -> None:
    """The processor's chat template with its tokenizer and image expansion in one call, against our
    two steps."""
    families = read_families()
    for example in examples[::5]:
        for family in [name for name in families if name != LOOK]:
            plan = evaluation_prompts(PromptsConfig(eval=family))
            prepared = prepare_example(example, processor, plan)
            image = Image.open(io.BytesIO(example.images[0])).convert("RGB")
            text = question_text(example, families[family], families[family].wordings[0])
            content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
            own = processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
            )
            assert prepared.prompt_token_ids.tolist() == list(own["input_ids"][0])


def test_the_reasoning_takes_the_images_place_without_its_tags() -> None:
    text = rederive_text(CHOICE, "A large organ.</think><answer>liver</answer>")
    assert text.startswith("Findings: A large organ.  liver \n")
    assert "<think>" not in text and text.count("<answer>") == 1  # the one in the line on the form
    turn = rederive_text(
        CHOICE, "A spot.<|im_end|>\n<|im_start|>assistant\n<|vision_start|><|image_pad|>liver"
    )
    assert "<|" not in turn and "A spot." in turn
    assert "Options: spleen, liver, kidney." in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "mine:\n  form: thnik\n  wordings: [a]\n",
            "mine.form: Input should be 'think', 'structured', 'answer' or 'look'",
        ),
        (
            "mine:\n  form: think\n  wordings: []\n",
            "mine.wordings: List should have at least 1 item",
        ),
        ("mine:\n  form: think\n  wording: [a]\n", "mine.wording"),
        ("- a\n", "expected keys and values"),
    ],
)
def test_mistakes_in_a_file_of_templates_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        training_prompts(PromptsConfig(train={"mine": 1}, eval="mine", templates=str(path)), 0)
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_a_file_of_templates_adds_to_the_families_and_replaces_one_by_its_name(
    tmp_path: Path, processor: Any
) -> None:
    path = tmp_path / "prompts.yaml"
    own = "form: answer, wordings: [Be brief.]"
    path.write_text(f"mine: {{{own}}}\nreason: {{{own}}}\n")
    config = PromptsConfig(train={"mine": 1, "explain": 1}, eval="mine", templates=str(path))
    brief = Family(form="answer", wordings=["Be brief."])
    built_in = read_families()
    assert training_prompts(config, 0).families == built_in | {"mine": brief, "reason": brief}
    assert built_in["reason"] != brief, "those of other runs stay as they are"
    assert "Be brief.\nReply as <answer>" in evaluation_prompts(config)(processor, CHOICE).text


def test_the_page_on_prompts_shows_a_file_that_can_be_read(tmp_path: Path) -> None:
    page = (BUILT_IN.parent.parent / "docs" / "prompts.md").read_text(encoding="utf-8")
    shown = page.split("```yaml\n")[1].split("```")[0]
    path = tmp_path / "prompts.yaml"
    path.write_text(shown)
    own = read_families(path)
    assert len(own) > 1
    for name in own:
        assert evaluation_prompts(PromptsConfig(eval=name, templates=str(path)))
    for key in Family.model_fields:
        assert f"`{key}`" in page


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PromptsConfig(train={"explian": 1}), "unknown family 'explian'; known are plain, explain"),
        (PromptsConfig(eval="step-by-step"), "unknown family 'step-by-step'"),
        (PromptsConfig(train={"plain": 0}), "at least one family needs a weight above 0"),
        (PromptsConfig(train={}), "at least one family needs a weight above 0"),
    ],
)
def test_unknown_families_are_named(config: PromptsConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        training_prompts(config, 0)


def test_the_default_is_one_plain_prompt(processor: Any) -> None:
    assert plain_prompt()(processor, YES_NO).wording == "plain/0"
    assert training_prompts(PromptsConfig(), 0).choose(YES_NO, 5) == ("plain", 0)
