"""Seconds to sample a demo step's completions on CPU, with and without the one-slot LoRA operators.

python bench/sampler.py
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time

REPEATS = 5


def measure(one_slot: bool) -> None:
    """In a process of its own, since vLLM's operators are replaced for good."""
    from rarl.system.processes import sampler_environment

    os.environ.update(sampler_environment("cpu", 0))
    from transformers import AutoProcessor

    from rarl.config import RolloutConfig
    from rarl.data.prepared import prepare_example
    from rarl.grpo.policy import adapter_arrays, adapter_config, load_policy
    from rarl.prompts import plain_prompt
    from rarl.rollout import engine, sampler
    from rarl.tiny.dataset import base_model, draw_examples

    if not one_slot:
        engine.use_own_product = lambda: None
    path = str(base_model())
    log = f"{tempfile.gettempdir()}/sampler.log"
    rollout = RolloutConfig(max_model_length=256)
    settings = sampler.SamplerSettings(path, "cpu", "float32", 8, rollout, log)
    actor = sampler.Sampler(settings)
    policy = load_policy(path, "float32", "cpu", 8, 16, 0)
    actor.load_adapter(0, adapter_arrays(policy), adapter_config(policy))
    processor = AutoProcessor.from_pretrained(path)
    seconds = []
    for repeat in range(REPEATS + 1):
        prepared = [
            prepare_example(e, processor, plain_prompt())
            for e in draw_examples("seen", 8, repeat, "bench")
        ]
        requests = [
            sampler.SampleRequest(p.prompt.text, p.pixels, 100 * i) for i, p in enumerate(prepared)
        ]
        started = time.perf_counter()
        groups = [g for _, g in actor.generate(requests, sampler.SamplingSettings(8, 1.0, 48))]
        seconds.append(time.perf_counter() - started)
        tokens = sum(len(r.completion_token_ids) for group in groups for r in group)
    best, middle = min(seconds[1:]), sorted(seconds[1:])[REPEATS // 2]
    name = "one slot" if one_slot else "vLLM's own"
    os.write(3, f"{name:12} median {middle:.2f} s, best {best:.2f} s, {tokens} tokens\n".encode())


def main() -> None:
    os.dup2(1, 3)  # the engine sends standard output to its log
    os.set_inheritable(3, True)
    context = multiprocessing.get_context("fork")
    for one_slot in (False, True):
        process = context.Process(target=measure, args=(one_slot,))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
