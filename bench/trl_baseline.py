"""TRL's GRPO as it is: its own trainer, its own loss."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from cases import chance_reward
from datasets import Dataset
from peft import LoraConfig, PeftModel
from PIL import Image
from step import StepCase
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from rarl.config import Config
from rarl.grpo.forward import make_patches
from rarl.grpo.group import TokenGroup
from rarl.grpo.policy import TARGETS
from rarl.prompts import chat_messages, question_text, read_families
from rarl.rewards import Reward
from rarl.rewards.answer import accuracy_reward
from rarl.rewards.form import format_reward
from rarl.schema import Example
from rarl.tiny.dataset import base_model, draw_examples


def trl_update(
    policy: PeftModel, group: TokenGroup, advantages: torch.Tensor
) -> Callable[[], None]:
    """`_compute_loss` and backward, tuned: no gradient checkpointing, no pass for old log-probs, no
    KL."""
    count, length = len(group.completions), len(group.completions[0])
    device = policy.get_base_model().device
    arguments = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=device.type == "cpu",
        bf16=device.type == "cuda",
        gradient_checkpointing=False,
        beta=0.0,
        num_generations=count,
        per_device_train_batch_size=count,
        max_completion_length=length,
        loss_type="grpo",
        report_to=[],
    )
    trainer: Any = GRPOTrainer(
        model=policy,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["a"] * count}),
        processing_class=AutoProcessor.from_pretrained(base_model()),
    )
    trainer.current_gradient_accumulation_steps = 1
    prompt = torch.from_numpy(group.prompt_token_ids)[None].repeat(count, 1)
    completions = torch.tensor(group.completions)
    image = (prompt == policy.get_base_model().config.image_token_id).int()
    batch = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "advantages": advantages,
        "num_items_in_batch": torch.tensor(completions.numel()),
        "pixel_values": make_patches(group, "cpu").repeat(count, 1),
        "image_grid_thw": torch.from_numpy(group.grid).repeat(count, 1),
        "mm_token_type_ids": torch.cat(
            [image, torch.zeros_like(completions, dtype=torch.int32)], dim=1
        ),
    }
    inputs = {key: value.to(device) for key, value in batch.items()} | {"num_images": [1] * count}

    def update() -> None:
        trainer._compute_loss(trainer.model, inputs).backward()

    return update


def trl_steps(
    case: StepCase, model: str, tuned: bool, use_vllm: bool, by_chance: bool
) -> list[float]:
    """Seconds of each step of a TRL training on phantom questions, with RARL's rewards or one by
    chance."""
    count = case.prompts * case.group
    batch = case.batch if tuned else 8  # TRL's default
    options: dict[str, Any] = {"gradient_checkpointing": False} if tuned else {}
    if use_vllm:  # without the pass that its importance sampling needs
        options |= {
            "use_vllm": True,
            "vllm_max_model_length": case.max_length,
            "vllm_importance_sampling_correction": False,
        }
    arguments = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        beta=0.0,
        num_generations=case.group,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=count // batch,
        max_completion_length=case.max_tokens,
        max_steps=case.steps,
        learning_rate=1e-3,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        **options,
    )
    clock = StepTimes()
    examples = draw_examples("seen", case.steps * case.prompts, 0, "bench")
    rewards: list[Reward] = [chance_reward] if by_chance else [format_reward, accuracy_reward]
    grpo_trainer(arguments, examples, clock, model, rewards).train()
    return clock.seconds


def grpo_trainer(
    arguments: GRPOConfig,
    examples: Sequence[Example],
    clock: StepTimes,
    model: str,
    rewards: Sequence[Reward],
) -> GRPOTrainer:
    """TRL's trainer with RARL's prompt and kind of adapter."""
    columns = ("answer", "answer_type", "options", "question")
    rows: dict[str, list[Any]] = {name: [getattr(e, name) for e in examples] for name in columns}
    plain = read_families()["plain"]
    rows["prompt"] = [chat_messages(question_text(e, plain, plain.wordings[0])) for e in examples]
    rows["image"] = [Image.open(io.BytesIO(e.images[0])).convert("RGB") for e in examples]
    return GRPOTrainer(
        model=AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32),
        reward_funcs=[text_reward(reward) for reward in rewards],
        args=arguments,
        train_dataset=Dataset.from_dict(rows),
        processing_class=AutoProcessor.from_pretrained(model),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM"),
        callbacks=[clock],
    )


def trl_learning(config: Config, out: str) -> dict[str, list[float]]:
    """Trains as the recipe of plain reinforcement learning says, saves the adapter in `out`, and
    returns the seconds and the accuracy of every step's own replies."""
    train, rollout = config.train, config.rollout
    count = train.prompts_per_step * rollout.group_size
    arguments = GRPOConfig(
        output_dir=out,
        use_cpu=True,
        bf16=False,
        seed=config.seed,
        beta=config.grpo.kl_beta,
        loss_type="grpo",
        reward_weights=[config.rewards[name].weight for name in ("format", "accuracy")],
        num_generations=rollout.group_size,
        per_device_train_batch_size=count,
        gradient_checkpointing=False,
        max_completion_length=rollout.max_completion_tokens,
        max_steps=train.steps,
        learning_rate=train.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=train.warmup_steps,
        max_grad_norm=train.max_grad_norm,
        weight_decay=0.0,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    clock = StepTimes()
    examples = draw_examples("seen", 960, config.seed, "train")
    rewards: list[Reward] = [format_reward, accuracy_reward]
    trainer = grpo_trainer(arguments, examples, clock, str(base_model()), rewards)
    trainer.train()
    trainer.save_model(out)
    key = "rewards/accuracy_reward/mean"
    accuracy = [float(row[key]) for row in trainer.state.log_history if key in row]
    return {"seconds": clock.seconds, "accuracy": accuracy}


def text_reward(reward: Callable[..., Any]) -> Callable[..., Any]:
    """TRL hands over conversations; the rewards want the text of the reply."""

    def on_text(completions: list[Any], **columns: Any) -> Any:
        texts = [message[0]["content"] for message in completions]
        return reward(
            completions=[t if isinstance(t, str) else t[0]["text"] for t in texts], **columns
        )

    on_text.__name__ = reward.__name__
    return on_text


class StepTimes(TrainerCallback):
    """The whole time from one step's end to the next one's."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.last = 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.last = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now
