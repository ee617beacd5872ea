"""The engines sample from a merged adapter what transformers and PEFT make of its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from rarl.data.prepared import prepare_example
from rarl.distribution import banned_token_ids
from rarl.grpo.policy import read_adapter
from rarl.prompts import plain_prompt
from rarl.rollout.pool import SamplerPool
from rarl.schema import Example
from rarl.sharing.members import Shares, merged, read_member, write_merged
from tests.test_merge import write_run
from tests.test_sampler import SAMPLING, largest_difference, requests


@pytest.mark.slow
def test_logprobs_of_a_merged_adapter_agree(
    pool: SamplerPool, model_path: str, processor: Any, examples: list[Example], tmp_path: Path
) -> None:
    """One of the average, and one of all ranks, which are as many as the engines were started
    for."""
    prepared = [prepare_example(one, processor, plain_prompt()) for one in examples[8:12]]
    banned = banned_token_ids(processor.tokenizer)
    for version, (rank, exact) in enumerate([(8, False), (4, True)], start=1):
        runs = [
            write_run(tmp_path / f"{rank}-{seed}", model_path, seed, rank=rank, alpha=16, tokens=9)
            for seed in (1, 2)
        ]
        shares = Shares([0.3, 0.7], "hand")
        adapter, origin = merged([read_member(str(one)) for one in runs], shares, exact, None)
        assert adapter.rank == 8
        folder = tmp_path / f"merged-{rank}"
        write_merged(adapter, origin, folder)
        pool.publish(version, *read_adapter(folder))
        sampled = pool.generate(requests(prepared, version), SAMPLING)
        base = AutoModelForImageTextToText.from_pretrained(model_path, dtype=torch.float32)
        tuned = PeftModel.from_pretrained(base, str(folder)).eval()
        assert largest_difference(tuned, prepared, sampled, 1.0, banned) < 1e-4
        with tuned.disable_adapter():
            apart = largest_difference(tuned, prepared, sampled, 1.0, banned)
        assert apart > 0.1, "the adapter must do something"
