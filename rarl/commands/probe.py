"""`rarl probe`: asks the untrained model some of the questions several times, before any training,
and says what is to be done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rarl.collect import Collector
from rarl.commands.drawing import draw_rows, prepare_questions
from rarl.commands.resolve import Setup, resolve
from rarl.commands.selecting import DATA, DIFFICULTY, data_hash
from rarl.commands.session import open_session
from rarl.config import Config
from rarl.display import Display
from rarl.evaluation.probe import Probe, agreement_of, as_json, parts_of, pay_of
from rarl.evaluation.ways import floors_of
from rarl.files import replacing, write_text
from rarl.grpo.policy import read_adapter
from rarl.prompts import evaluation_prompts, training_prompts
from rarl.rollout.sampler import SamplingSettings
from rarl.samples import Group, Sample, flatten, write_samples
from rarl.training.collector import training_collector

TRAIN = "train"


@dataclass(frozen=True)
class Replies:
    """A data set's sampled groups, and one greedy reply to each question."""

    groups: list[Group]
    greedy: list[Sample]


def probe(config: Config, samples: int, questions: int, display: Display) -> tuple[Probe, Path]:
    """Asks up to `questions` of each data set `samples` times, but at least as often as a group has
    replies, at the temperature of training, and once greedily. Returns what that says, and the
    folder in the run directory that it is written to. Raises UserError."""
    setup = resolve(config)
    samples = max(samples, config.rollout.group_size)
    sets = {TRAIN: str(setup.train_data), **setup.eval_data}
    with open_session(setup, display, sets, trains=True) as live, ExitStack() as stack:
        assert live.pool is not None, "a probe asks for engines"
        if setup.start_adapter is not None:
            live.pool.publish(0, *read_adapter(setup.start_adapter))
        paying = stack.enter_context(
            training_collector(
                config,
                live.pool,
                setup.model_path,
                sets[TRAIN],
                setup.run_dir.judge_cache_of(rank=0),
                judge_engine=live.judge_engine,
            )
        )
        longest = config.rollout.max_model_length
        silent = Collector.unscored(live.pool, setup.model_path, longest)
        found: dict[str, Replies] = {}
        for name, path in sets.items():
            rows = draw_rows(live.checked[name].good, questions, config.seed)
            count = len(rows) * (samples + 1)
            with display.counting(f"asking about {name}", count) as advance:
                collector = paying if name == TRAIN else silent
                found[name] = ask(setup, collector, path, rows, samples, name == TRAIN)
                advance(count)
    result = summarise(config, sets, found)
    folder = setup.run_dir.probe
    write(folder, result, found, data_hash(sets[TRAIN]))
    return result, folder


def ask(
    setup: Setup,
    collector: Collector,
    data: str,
    rows: Sequence[int],
    samples: int,
    trains: bool,
) -> Replies:
    """Asks as training does, or as the measurement does; greedily always as the measurement."""
    config = setup.config
    measured, rollout = evaluation_prompts(config.prompts), config.rollout
    measuring = prepare_questions(setup, data, rows, measured)
    sampled = measuring
    if trains:
        plan = training_prompts(config.prompts, config.seed)
        sampled = prepare_questions(setup, data, rows, plan)
    adapter = setup.start_adapter is not None
    longest = config.evaluation.max_completion_tokens or rollout.max_completion_tokens
    greedy = Collector.unscored(collector.pool, setup.model_path, rollout.max_model_length)
    seeds = [config.seed + samples * place for place in range(len(rows))]
    groups = collector.submit(
        sampled,
        seeds,
        SamplingSettings(samples, rollout.temperature, rollout.max_completion_tokens),
        use_adapter=adapter,
    )
    likeliest = greedy.submit(
        measuring,
        seeds,
        SamplingSettings(1, 0.0, longest),
        use_adapter=adapter,
    )
    return Replies(groups.result(), flatten(likeliest.result()))


def summarise(config: Config, sets: dict[str, str], found: dict[str, Replies]) -> Probe:
    size = config.rollout.group_size
    parts = [
        part
        for name, asked in found.items()
        for part in parts_of(name, asked.groups, asked.greedy, size, paid=name == TRAIN)
    ]
    replies = {name: asked.greedy for name, asked in found.items() if name != TRAIN}
    floors = {
        name: {
            floor: sum(one.is_right for one in own) / len(own) for floor, own in by_floor.items()
        }
        for name, by_floor in floors_of(Path(sets[TRAIN]), replies).items()
    }
    agreement = agreement_of(*(asked.groups for asked in found.values()))
    return Probe(parts, pay_of(found[TRAIN].groups, size), floors, agreement)


def write(folder: Path, result: Probe, found: dict[str, Replies], train_hash: str) -> None:
    """Writes the figures, how difficult each question was (the share of right replies, with the
    hash of the training data), and the replies."""
    folder.mkdir(exist_ok=True)
    for name, asked in found.items():
        write_samples(folder / f"{name}.parquet", flatten(asked.groups), {"data": name})
    columns: dict[str, list[object]] = {"data": [], "id": [], "right": []}
    for name, asked in found.items():
        for group in asked.groups:
            columns["data"].append(name)
            columns["id"].append(group[0].example.id)
            columns["right"].append(sum(one.is_right for one in group) / len(group))
    table = pa.table(columns).replace_schema_metadata({DATA: train_hash})
    with replacing(folder / DIFFICULTY) as temporary:
        pq.write_table(table, temporary)
    write_text(folder / "probe.json", json.dumps(as_json(result, TRAIN), indent=2) + "\n")
