"""The floor of the reward `fluency`: how likely the base model finds its own replies."""

from __future__ import annotations

import json

import numpy as np

from rarl.collect import Collector
from rarl.commands.drawing import draw_rows, prepare_questions
from rarl.commands.resolve import Setup
from rarl.commands.session import Session
from rarl.display import Display
from rarl.files import write_text
from rarl.prompts import training_prompts
from rarl.reading import read_language
from rarl.replies.tags import asks_thinking
from rarl.rollout.sampler import SamplingSettings
from rarl.samples import flatten

QUESTIONS, REPLIES = 64, 4  # that are asked, and the replies to each
PERCENTILE = 1.0  # of the base model's own replies lies below the floor


def fluency_floor(setup: Setup, live: Session, display: Display) -> float | None:
    """Returns the first percentile of the mean log-prob (nats a token) that the base model gives
    its own replies to questions of the training data, and keeps it in the run directory, for when
    the run is continued. None where the reward is not configured, or has a floor of its own."""
    config, data, path = setup.config, setup.train_data, setup.run_dir.fluency
    reward = config.rewards.get("fluency")
    if reward is None or reward.options.get("floor") is not None:
        return None
    if path.is_file():
        return float(json.loads(path.read_text())["floor"])
    assert data is not None and live.pool is not None, "training has data and engines"
    rows = draw_rows(live.checked["train"].good, QUESTIONS, config.seed)
    prompts = prepare_questions(setup, data, rows, training_prompts(config.prompts, config.seed))
    thinking = [one for one in prompts if asks_thinking(one.prompt.form)]
    rollout = config.rollout
    sampling = SamplingSettings(REPLIES, rollout.temperature, rollout.max_completion_tokens)
    collector = Collector.unscored(live.pool, setup.model_path, rollout.max_model_length)
    with display.working("reading the base model's own replies"):
        seeds = [config.seed + REPLIES * place for place in range(len(thinking))]
        samples = flatten(collector.submit(thinking, seeds, sampling, use_adapter=False).result())
        read_language(live.pool, samples).write()
    found = [one.thinking_logprob for one in samples if one.thinking_logprob is not None]
    if not found:
        return None
    floor = round(float(np.percentile(found, PERCENTILE)), 4)
    write_text(path, json.dumps({"floor": floor, "replies": len(found)}) + "\n")
    return floor
