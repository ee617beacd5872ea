"""Supervised fine-tuning: its targets, its loss and gradient against transformers' own, and whole
runs."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from rarl.adapters.origin import read_origin, weights_hash
from rarl.commands.resolve import resolve, what_is_imitated
from rarl.config import LoraConfig, PromptsConfig, load_config
from rarl.data.parquet import write_examples
from rarl.data.prepared import PreparedExample, prepare_example
from rarl.errors import UserError
from rarl.grpo.policy import adapter_parameters, load_policy, save_adapter
from rarl.grpo.shared_prefix import SharedPrefixForward
from rarl.grpo.update import ImitationStats, imitate, micro_batches
from rarl.prompts import (
    evaluation_prompts,
    imitation_prompts,
    plain_prompt,
    target_reply,
    training_prompts,
)
from rarl.rollout.pool import SamplerPool
from rarl.schema import Example, ReplyForm
from rarl.system.models import resolve_adapter
from rarl.tiny.phantoms import QUESTIONS
from rarl.training.inputs import Progress, TrainInputs
from rarl.training.learner import Learner
from rarl.training.log import read_metrics
from rarl.training.sft import target_groups, train_sft
from tests.runs import (
    REPOSITORY,
    SHORT,
    assert_one_line_error,
    inputs_of,
    list_batches,
    rarl_here,
)


@pytest.fixture(scope="module")
def prepared(examples: list[Example], processor: Any) -> list[PreparedExample]:
    return [prepare_example(example, processor, plain_prompt()) for example in examples[:6]]


@pytest.mark.parametrize(
    ("form", "target"),
    [
        ("answer", "<answer>left</answer>"),
        ("think", "<think>A spot.</think><answer>left</answer>"),
        ("structured", "<think>Findings: A spot. Impression: left.</think><answer>left</answer>"),
    ],
)
def test_the_target_is_what_the_prompt_asks_for(
    prepared: list[PreparedExample], form: ReplyForm, target: str
) -> None:
    example = replace(prepared[0].example, rationale="A spot.", answer="left")
    assert target_reply(example, form) == target


def test_without_a_rationale_the_answer_alone_is_asked_for(
    processor: Any, examples: list[Example]
) -> None:
    """Whatever the weights, and with them drawn by these."""
    bare = [replace(one, id=str(i), rationale=" ") for i, one in enumerate(examples * 4)]
    for weights, asked in (
        ({"plain": 1.0, "none": 0.0}, {"none"}),
        ({"plain": 9.0, "short": 1.0}, {"short"}),
    ):
        plan = imitation_prompts(PromptsConfig(train=weights), seed=0)
        prompts = [plan(processor, one, step) for step, one in enumerate(bare)]
        assert {one.family for one in prompts} == asked
        assert {target_reply(bare[0], one.form) for one in prompts} == {
            f"<answer>{bare[0].answer}</answer>"
        }
        assert {one.family for one in plan.longest(processor, bare[0])} == asked
        drawn = training_prompts(PromptsConfig(train=weights), seed=0)
        for step, example in enumerate(examples):
            assert plan(processor, example, step) == drawn(processor, example, step)


def test_wordings_of_ones_own_need_no_family_for_the_answer_alone(
    tmp_path: Path, processor: Any, examples: list[Example]
) -> None:
    own = tmp_path / "prompts.yaml"
    own.write_text("mine: {form: think, wordings: [Think.]}\n", encoding="utf-8")
    config = PromptsConfig(train={"mine": 1}, eval="mine", templates=str(own))
    plan = imitation_prompts(config, seed=0)
    assert plan(processor, examples[0], 1).family == "mine"
    assert plan(processor, replace(examples[0], rationale=None), 1).wording == "none/0"


def test_what_is_imitated_is_counted_and_told_before_anything_starts(
    tmp_path: Path, examples: list[Example]
) -> None:
    path = str(tmp_path / "data.parquet")
    bare = [replace(examples[0], rationale=None), replace(examples[1], rationale=" ")]
    write_examples(Path(path), [*examples[2:5], *bare])
    told = (
        "3 of 5 rows have a rationale to imitate; the other 2 are asked for the answer alone (pro"
    )
    assert what_is_imitated(path, PromptsConfig()).startswith(told)
    write_examples(Path(path), bare)
    told = what_is_imitated(path, PromptsConfig(train={"short": 1, "plain": 1}, eval="reason"))
    assert told.startswith("0 of 2 rows have a rationale to imitate; they are asked for the answer")
    assert "for a fair figure set prompts.eval=short" in told
    told = "the answer alone is imitated, as prompts.train (none) asks for"
    assert what_is_imitated(path, PromptsConfig(train={"none": 1, "plain": 0})) == told
    write_examples(Path(path), bare)
    message = r"not one of 2 rows has a rationale to imitate.*prompts.train=\{none: 1\}"
    asked = [f"data.train={path}", "data.eval={}", f"run_dir={tmp_path / 'run'}", "method=sft"]
    with pytest.raises(UserError, match=message):
        resolve(load_config(REPOSITORY / "configs/demo.yaml", [*asked, "prompts.train={plain: 1}"]))
    assert not (tmp_path / "run").exists()
    assert what_is_imitated(path, PromptsConfig(train={"plain": 1, "short": 1})).startswith(
        "0 of 2"
    )


@pytest.mark.parametrize(("name", "value"), [("rank", 4), ("alpha", 32)])
def test_an_adapter_of_another_shape_is_refused(
    tmp_path: Path, model_path: str, name: str, value: int
) -> None:
    shape = {"rank": 8, "alpha": 16, name: value}
    save_adapter(load_policy(model_path, "float32", "cpu", **shape, seed=0), tmp_path / "adapter")
    with pytest.raises(UserError, match=rf"its {name} is {value}; set model.lora.{name} to it"):
        resolve_adapter(str(tmp_path), LoraConfig())
    assert resolve_adapter(str(tmp_path), LoraConfig(**shape)) == tmp_path / "adapter"


def learner_of(model_path: str, learning_rate: float) -> Learner:
    policy = load_policy(model_path, "float32", "cpu", rank=8, alpha=16, seed=0)
    torch.manual_seed(1)
    for parameter in adapter_parameters(policy):
        torch.nn.init.normal_(parameter, std=0.02)
    optimizer = torch.optim.SGD(adapter_parameters(policy), lr=learning_rate)
    return Learner(policy, optimizer, None, Progress(0, 0))


def step_of(
    model_path: str, prepared: list[PreparedExample], processor: Any, budget: int
) -> tuple[ImitationStats, Any]:
    """One step of size 1 against the gradient: the change of the weights is the gradient itself."""
    learner = learner_of(model_path, learning_rate=1.0)
    before = [p.detach().clone() for p in adapter_parameters(learner.policy)]
    groups = target_groups(prepared, processor.tokenizer, 256)
    policy, forward = learner.policy, SharedPrefixForward()
    stats = imitate(policy, learner.optimizer, groups, forward, budget, max_grad_norm=1e9)
    gradient = [
        b - p.detach() for b, p in zip(before, adapter_parameters(learner.policy), strict=True)
    ]
    return stats, gradient


def test_loss_and_gradient_equal_transformers_own(
    model_path: str, prepared: list[PreparedExample], examples: list[Example], processor: Any
) -> None:
    """transformers' cross-entropy over a padded batch with labels, through peft's own layers."""
    stats, gradient = step_of(model_path, prepared, processor, budget=4096)
    policy = learner_of(model_path, 1.0).policy
    texts = [
        p.prompt.text + target_reply(p.example, p.prompt.form) + "<|im_end|>" for p in prepared
    ]
    images = [Image.open(io.BytesIO(e.images[0])).convert("RGB") for e in examples[:6]]
    batch = processor(
        text=texts, images=images, padding=True, padding_side="right", return_tensors="pt"
    )
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for row, one in enumerate(prepared):
        labels[row, : len(one.prompt_token_ids)] = -100
    loss = policy(**batch, labels=labels).loss
    loss.backward()
    assert stats.tokens == int((labels != -100).sum())
    assert stats.loss == pytest.approx(loss.item(), rel=1e-5)
    for ours, parameter in zip(gradient, adapter_parameters(policy), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=2e-3, atol=2e-6)
    assert stats.grad_norm == pytest.approx(
        float(torch.cat([g.flatten() for g in gradient]).norm()), rel=1e-4
    )


def test_parts_add_up_to_the_whole_batch(
    model_path: str, prepared: list[PreparedExample], processor: Any
) -> None:
    groups = target_groups(prepared, processor.tokenizer, 256)
    sizes = [
        len(part) for part in micro_batches(groups, 2 * len(prepared[0].prompt_token_ids), True)
    ]
    assert sum(sizes) == 6 and len(sizes) > 2
    assert [len(part) for part in micro_batches(groups, 1, True)] == [1] * 6
    whole, gradient = step_of(model_path, prepared, processor, budget=4096)
    parts, same = step_of(model_path, prepared, processor, budget=200)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    for one, other in zip(gradient, same, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_a_target_that_does_not_fit_is_named(
    prepared: list[PreparedExample], processor: Any
) -> None:
    with pytest.raises(
        UserError, match=rf"example '{prepared[0].example.id}'.*rollout.max_model_length=80"
    ):
        target_groups(prepared, processor.tokenizer, 80)


@pytest.mark.slow
@pytest.mark.whole
def test_sft_of_the_tiny_model_learns_its_domain_and_warms_up_reinforcement(
    pool: SamplerPool, tmp_path: Path
) -> None:
    """A third of the recipe's steps is enough for every question; GRPO then starts from its
    adapter."""
    domain = "data.eval={phantoms-seen: 'rarl.tiny.dataset:write_seen_test'}"
    short = ["train.steps=40", "evaluation.max_examples=200", domain]
    done = rarl_here(
        "sft", "configs/recipes/tiny/sft.yaml", f"run_dir={tmp_path / 'sft'}", *short, pool=pool
    )
    assert done.returncode == 0, done.stderr
    replies = pq.read_table(
        tmp_path / "sft" / "evaluation" / "model=trained" / "data=phantoms-seen"
    ).to_pylist()
    for question in QUESTIONS:
        right = [
            row["score/rewards/correct"] for row in replies if row["example/id"].endswith(question)
        ]
        assert len(right) > 40 and sum(right) / len(right) > 0.85, question
    summary = json.loads((tmp_path / "sft" / "summary.json").read_text())
    assert summary["trained"]["phantoms-seen"]["reasoning"]["mean"] > 0.7
    rows = read_metrics(tmp_path / "sft" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert {row["with_rationale"] for row in rows} == {1.0}

    start = f"model.adapter={tmp_path / 'sft'}"
    done = rarl_here(
        "train",
        "configs/recipes/tiny/rarl.yaml",
        f"run_dir={tmp_path / 'rl'}",
        start,
        *SHORT,
        "data.eval={}",
        pool=pool,
    )
    assert done.returncode == 0, done.stderr
    first = pq.read_table(tmp_path / "rl" / "samples" / "step_000001.parquet").to_pylist()
    assert sum(row["score/rewards/accuracy"] for row in first) / len(first) > 0.6, (
        "the first samples come from the adapter"
    )
    tuned = load_file(tmp_path / "sft" / "adapter" / "adapter_model.safetensors")
    after = load_file(tmp_path / "rl" / "adapter" / "adapter_model.safetensors")
    changes = [float((after[name] - tuned[name]).norm() / tuned[name].norm()) for name in tuned]
    assert 0 < max(changes) < 0.2, "a few steps away from where it started"


def test_a_missing_start_adapter_is_named(tmp_path: Path) -> None:
    done = rarl_here(
        "train",
        "configs/demo.yaml",
        f"run_dir={tmp_path / 'run'}",
        f"model.adapter={tmp_path / 'none'}",
    )
    assert_one_line_error(
        done, f"model.adapter={tmp_path / 'none'}", "neither a finished run directory nor"
    )


def test_evaluation_prompts_can_ask_for_the_answer_alone(
    processor: Any, examples: list[Example]
) -> None:
    alone = prepare_example(examples[0], processor, evaluation_prompts(PromptsConfig(eval="none")))
    assert (
        target_reply(alone.example, alone.prompt.form) == f"<answer>{examples[0].answer}</answer>"
    )


def test_a_run_from_an_adapter_continues_exactly_and_counts_what_it_learnt(
    tmp_path: Path, dataset: Path, model_path: str, processor: Any
) -> None:
    """Ended after its second step, and given again: the second start begins at the checkpoint, not
    at the adapter that the first one began with."""
    start = tmp_path / "start"
    save_adapter(learner_of(model_path, 1.0).policy, start)
    keys = ["method=sft", "data.eval={}", f"model.adapter={start}", "train.checkpoint_every=1"]

    def train(run: Path, until: int | None) -> TrainInputs:
        nobody: Any = None  # imitation asks no engines
        made = inputs_of(nobody, run, dataset, model_path, processor, *keys)
        inputs = replace(made, start_adapter=start)
        learner = Learner.load(inputs)
        batches = list_batches(inputs, processor, learner.progress.batches)
        if until is not None:
            batches = ending_after(batches, until, inputs.run_dir.stop_request)
        train_sft(inputs, learner, batches)
        return inputs

    whole = train(tmp_path / "whole", None)
    first = train(tmp_path / "parts", 2)
    assert not first.run_dir.adapter.exists()
    first.run_dir.stop_request.unlink()
    parts = train(tmp_path / "parts", None)
    weights = [one.run_dir.adapter / "adapter_model.safetensors" for one in (whole, parts)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    origins = [read_origin(one.run_dir.adapter) for one in (whole, parts)]
    assert origins[0] == origins[1] and origins[0] is not None
    rows = read_metrics(parts.run_dir.metrics)
    assert origins[0].answer_tokens == sum(row["completion_tokens/total"] for row in rows) > 0
    assert origins[0].steps == len(rows) == 4 and origins[0].method == "sft"
    assert origins[0].base_sha256 == weights_hash(Path(model_path))


def ending_after(batches: Iterator[Any], step: int, request: Path) -> Iterator[Any]:
    """Yields the batches; with that of `step` the run is asked to end after its step."""
    for number, prompts in batches:
        if number == step:
            request.touch()
        yield number, prompts
