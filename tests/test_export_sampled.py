"""vLLM loads an exported model, and samples from it what base and adapter give in transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from rarl.data.prepared import prepare_example
from rarl.distribution import banned_token_ids
from rarl.prompts import plain_prompt
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import SamplerSettings
from rarl.schema import Example
from tests.runs import rarl_here
from tests.test_merge import change_origin, write_run
from tests.test_sampler import SAMPLING, largest_difference, requests


@pytest.mark.long
def test_logprobs_of_an_exported_model_agree(
    ray_cluster: None,
    sampler_settings: SamplerSettings,
    model_path: str,
    processor: Any,
    examples: list[Example],
    tmp_path: Path,
) -> None:
    """With an engine of its own, which holds nothing but the exported folder."""
    run, out = write_run(tmp_path / "run", model_path, 4, tokens=1), tmp_path / "whole"
    change_origin(run, base_sha256=None)
    assert rarl_here("export", run, "--merged", out).returncode == 0
    prepared = [prepare_example(one, processor, plain_prompt()) for one in examples[8:14]]
    settings = replace(sampler_settings, model_path=str(out))
    one = SamplerPool.launch(settings, 1, tmp_path / "logs", timeout=300)
    try:
        one.wait_until_ready()
        sampled = one.generate(requests(prepared), SAMPLING, use_adapter=False)
    finally:
        one.stop()
    base = AutoModelForImageTextToText.from_pretrained(model_path, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, str(run / "adapter")).eval()
    banned = banned_token_ids(processor.tokenizer)
    assert largest_difference(tuned, prepared, sampled, 1.0, banned) < 1e-4
    with tuned.disable_adapter():
        assert largest_difference(tuned, prepared, sampled, 1.0, banned) > 0.1
