"""The loss of an adapter on a data set's own answers: what shares by validation are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from rarl.adapters.merging import PeftAdapter
from rarl.config import Config
from rarl.data.parquet import ParquetRows
from rarl.data.prepared import prepare_example
from rarl.data.stream import load_processor
from rarl.distribution import MODEL_SOFTMAX
from rarl.grpo.forward import VisionCache, plain_forward
from rarl.grpo.policy import load_policy, set_arrays
from rarl.grpo.update import micro_batches
from rarl.prompts import ImitationPlan, evaluation_prompts, imitation_prompts
from rarl.system.device import resolve_device, resolve_dtype
from rarl.training.sft import target_groups

ROWS = 32  # that are prepared at a time


def validation_loss(
    adapter: PeftAdapter,
    model: str,
    config: Config,
    rows: ParquetRows,
    advance: Callable[[int], Any],
) -> float:
    """Returns the mean negative log-likelihood, in nats per token, of the reference replies of all
    rows under the base in the folder `model` with this adapter. Questions are asked as the
    configuration measures; those that it would have reason, and that have no rationale, are asked
    for the answer alone. Raises UserError, for a row that cannot be used too."""
    disable_progress_bar()
    device = resolve_device(config)
    shape = (adapter.rank, adapter.alpha)
    policy = load_policy(model, resolve_dtype(config, device), device, *shape, seed=0)
    set_arrays(policy.eval(), adapter.arrays)
    processor, most = load_processor(model), config.data.max_pixels
    asked, answering = evaluation_prompts(config.prompts), imitation_prompts(config.prompts, 0)
    prompts = ImitationPlan(asked, answering.without)
    total, tokens = 0.0, 0
    for start in range(0, len(rows), ROWS):
        examples = rows.read(range(start, min(start + ROWS, len(rows))))
        prepared = [prepare_example(one, processor, prompts, most) for one in examples]
        groups = target_groups(prepared, processor.tokenizer, config.rollout.max_model_length)
        tokens += sum(len(one.completions[0]) for one in groups)
        for batch in micro_batches(groups, config.train.micro_batch_tokens, shared=False):
            with torch.no_grad():
                # The padding has log-prob 0.
                found = plain_forward(policy, batch, MODEL_SOFTMAX, VisionCache()).logprobs
            total -= float(found.double().sum())
        advance(len(examples))
    return total / tokens
