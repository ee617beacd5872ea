"""The constants of `rarl plan`'s cost model on this CPU, for rarl/planning/seconds.py.

    python bench/speed.py

The tiny model. Generation: one engine in this process, on one core, seconds fitted to decoding
steps, tokens and prompts. Update: `update_policy` with all cores, seconds fitted to operations and
groups. Medians of `REPEATS` calls.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from measure import seconds
from numpy.typing import NDArray
from scipy.optimize import nnls

REPEATS = 3
SAMPLED = [(1, 2, 48), (2, 8, 48), (4, 8, 24), (6, 16, 48), (12, 8, 48), (12, 4, 12), (8, 2, 48)]
UPDATED = [(1, 4, 16), (2, 8, 24), (4, 8, 48), (8, 4, 16), (8, 8, 48), (12, 8, 24)]


def fit(columns: list[list[float]], taken: list[float]) -> NDArray[Any]:
    """Non-negative coefficients with the least squares of relative errors."""
    matrix, wanted = np.array(columns), np.array(taken)
    return np.asarray(nnls(matrix / wanted[:, None], np.ones(len(wanted)))[0])


def generation(report: Callable[[str], None]) -> None:
    from rarl.system.processes import sampler_environment

    os.environ.update(sampler_environment("cpu", 0))
    from transformers import AutoProcessor

    from rarl.config import RolloutConfig
    from rarl.data.prepared import prepare_example
    from rarl.grpo.policy import adapter_arrays, adapter_config, load_policy
    from rarl.planning.seconds import decode_steps
    from rarl.prompts import plain_prompt
    from rarl.rollout import sampler
    from rarl.tiny.dataset import base_model, draw_examples

    path = str(base_model())
    log = f"{tempfile.gettempdir()}/speed-sampler.log"
    rollout = RolloutConfig(max_model_length=256)
    engine = sampler.Sampler(sampler.SamplerSettings(path, "cpu", "float32", 8, rollout, log))
    policy = load_policy(path, "float32", "cpu", 8, 16, 0)
    arrays, settings = adapter_arrays(policy), adapter_config(policy)
    loads = [
        timed(lambda v=version: engine.load_adapter(v, arrays, settings))  # type: ignore[misc]
        for version in range(6)
    ]
    processor = AutoProcessor.from_pretrained(path)
    columns, taken = [], []
    for repeat in range(REPEATS + 1):
        for index, (prompts, group, longest) in enumerate(SAMPLED):
            examples = draw_examples("seen", prompts, 100 * repeat + index, "bench")
            prepared = [prepare_example(e, processor, plain_prompt()) for e in examples]
            requests = [
                sampler.SampleRequest(p.prompt.text, p.pixels, i) for i, p in enumerate(prepared)
            ]
            started = time.perf_counter()
            groups = [
                g
                for _, g in engine.generate(requests, sampler.SamplingSettings(group, 1.0, longest))
            ]
            lengths = np.array([[len(r.completion_token_ids) for r in g] for g in groups])
            if repeat:
                columns.append(
                    [decode_steps(lengths, rollout.max_sequences), lengths.sum(), prompts]
                )
                taken.append(time.perf_counter() - started)
    step, token, prompt = fit(columns, taken)
    errors = np.abs(np.array(columns) @ [step, token, prompt] / taken - 1)
    report(
        f"decode_step={step:.2g}, sequence={token:.2g}, prompt={prompt:.2g}, "
        f"publish={np.median(loads[1:]):.2g}"
    )
    report(
        f"  generation: {len(taken)} calls, median error of the fit {100 * np.median(errors):.0f} %"
    )


def update(report: Callable[[str], None]) -> None:
    import torch
    from cases import Case, make_group, make_policy

    from rarl.config import GrpoConfig, TrainConfig
    from rarl.distribution import MODEL_SOFTMAX
    from rarl.grpo.policy import adapter_parameters
    from rarl.grpo.shared_prefix import SharedPrefixForward
    from rarl.grpo.update import UpdateSettings, update_policy
    from rarl.planning.sizes import update_flops

    torch.set_num_threads(os.cpu_count() or 1)
    policy = make_policy("tiny", "cpu")
    config = policy.get_base_model().config
    optimizer = torch.optim.AdamW(adapter_parameters(policy), lr=0.0)
    settings = UpdateSettings(GrpoConfig(), TrainConfig(), 48, shared_prefix=True)
    columns, taken = [], []
    for groups, size, completion in UPDATED:
        case = Case("speed", "tiny", 116, completion, size, 8)
        sampled = [[-1.0] * completion] * size
        advantages = np.linspace(-1, 1, size, dtype=np.float32)
        made = [make_group(case, config, index) for index in range(groups)]
        scored = [replace(g, sampler_logprobs=sampled, advantages=advantages) for g in made]
        forward = SharedPrefixForward()
        call = partial(update_policy, policy, optimizer, scored, forward, MODEL_SOFTMAX, settings)
        taken.append(float(np.median(seconds(call, "cpu", REPEATS + 1)[1:])))
        columns.append([groups * update_flops(case.shape, config), groups])
    per_operation, per_group = fit(columns, taken)
    errors = np.abs(np.array(columns) @ [per_operation, per_group] / taken - 1)
    rate = 1 / per_operation if per_operation else float("inf")
    report(f"update={rate:.2g}, group={per_group:.2g}")
    report(f"  update: {len(taken)} sizes, median error of the fit {100 * np.median(errors):.0f} %")


def timed(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    os.dup2(1, 3)  # the engine sends standard output to its log
    os.set_inheritable(3, True)
    context = multiprocessing.get_context("fork")
    for part in (generation, update):
        process = context.Process(
            target=part, args=(lambda line: os.write(3, f"{line}\n".encode()),)
        )
        process.start()
        process.join()


if __name__ == "__main__":
    main()
