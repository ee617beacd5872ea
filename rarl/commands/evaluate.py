"""`rarl eval`: measures a run, a configuration, or any model with or without an adapter, in one way
or several: another prompt, a control, samples, the likelihood of options."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

import numpy as np

from rarl.collect import Collector
from rarl.commands.resolve import Setup, resolve
from rarl.commands.session import Session, open_session
from rarl.config import Config, PromptsConfig
from rarl.data.images import Control, rows_with_other_images
from rarl.data.parquet import ParquetRows
from rarl.display import Display
from rarl.errors import UserError
from rarl.evaluation import options
from rarl.evaluation.groups import without_values
from rarl.evaluation.lines import named
from rarl.evaluation.measured_data import remember_data
from rarl.evaluation.measurements import (
    FINISHED,
    Exam,
    Measurement,
    complete,
    folder_of,
    look_up,
    require_readable,
)
from rarl.evaluation.medevalkit import medevalkit_scores
from rarl.evaluation.metrics import GRADE_SETTINGS, GRADES
from rarl.evaluation.results import difference, first_samples, summarise, summary_of
from rarl.evaluation.ways import Look, Way, floors_of, likeliest_options, training_data
from rarl.files import write_text
from rarl.grpo.policy import read_adapter
from rarl.look import Looker
from rarl.planning.data import require_room_at_first_sight
from rarl.prompts import LOOK, PromptPlan, evaluation_prompts, looking_prompts
from rarl.rollout.sampler import SamplingSettings
from rarl.samples import Sample, flatten
from rarl.training.log import read_metrics


def ways_to_measure(
    prompts: str, controls: str, samples: int, likelihood: bool, look: bool = False
) -> list[Way]:
    """Returns every prompt with the image, with every control and with the second look and its
    controls, the samples with the image and with the looks, and the options once. Raises UserError
    for an unknown control."""
    families = [one.strip() for one in prompts.split(",")] if prompts else [None]
    wanted = [one.strip() for one in controls.split(",")] if controls else []
    known = get_args(Control)
    for one in wanted:
        if one not in known:
            raise UserError(f"--control {one}: unknown; known are {', '.join(known)}")
    ways = [Way(prompt=family) for family in families]
    for family in families:
        ways += [Way(prompt=family, control=one) for one in known if one in wanted]
        looks = get_args(Look) if look else ()
        ways += [Way(prompt=family, control=one) for one in looks]
        if samples > 1:
            ways += [Way(prompt=family, control=one, samples=samples) for one in (None, *looks)]
    return [*ways, Way(prompt="none", options=True)] if likelihood else ways


# Whose arithmetic summaries hold beside RARL's own, by the name that --scoring gives.
SCORINGS = {"medevalkit": medevalkit_scores}


def require_scoring(scoring: str) -> None:
    """Raises UserError for one that is not known."""
    if scoring and scoring not in SCORINGS:
        raise UserError(f"--scoring {scoring}: unknown; known is {', '.join(SCORINGS)}")


def evaluate_only(
    config: Config,
    made_with: Config,
    ways: list[Way],
    display: Display,
    adapter: Path | None = None,
    scoring: str = "",
) -> dict[str, dict[str, Any]]:
    """Measures the base model of a configuration, and the run directory's adapter, or else
    `adapter`, if there is one. `made_with` is the run's configuration; `config` may have other
    data, another `prompts.eval` or `judge`. Returns a summary for each way, by its words, and
    writes it beside the replies; with `scoring`, one of SCORINGS, that is in it too. Engines start
    only if replies are missing."""
    require_scoring(scoring)
    ways = [replace(way, prompt=way.prompt or config.prompts.eval) for way in ways]
    for way in ways:
        prompts_of(config, way)  # an unknown family is an error now, not after the engines' start
    setup = resolve(config, made_with)
    try:
        require_readable(setup.run_dir.path)
    except UserError as error:
        display.note(str(error))
    trained = setup.run_dir.adapter if setup.run_dir.adapter.is_dir() else adapter
    models = ["base"] if trained is None else ["base", "trained"]
    for line in setup.run_dir.notes:
        display.note(line)
    if trained is None and made_with is not config:  # a run directory was named
        made = f"{len(read_metrics(setup.run_dir.metrics))} of {made_with.train.steps} steps"
        display.note(
            f"{setup.run_dir.path} has no adapter yet ({made} are made): only its base model is "
            "measured; `rarl train` finishes a run"
        )
    # What is missing is known only once the data are checked, which needs no engines: if all seems
    # to be on disk, under whichever judge, it is looked up without them first.
    folders = [
        folder_of(setup.evaluation / options.FOLDER, options.OptionsKey(model, name))
        if way.options
        else folder_of(setup.evaluation, key_of(setup, model, name, way)).parent
        for way, model, name in product(ways, models, setup.eval_data)
    ]
    begun = all(any(folder.glob(f"**/{FINISHED}")) for folder in folders)
    families = [str(way.prompt) for way in ways]
    families += [LOOK] if any(way.aim for way in ways) else []
    if not begun:
        require_room_at_first_sight(setup.config, setup.model_path, False, families)
    for engines in [False, True] if begun else [True]:
        with open_session(
            setup, display, setup.eval_data, engines=engines, families=families
        ) as live:
            remember_data(setup.evaluation, setup.eval_data, live.checked)
            if live.pool is None and lacks(setup, live, ways, models):
                continue
            if live.pool is not None and trained is not None:
                live.pool.publish(config.train.steps, *read_adapter(trained))
            return measure_ways(setup, live, ways, models, display, scoring)
    raise AssertionError("with engines everything can be measured")


def measure_ways(
    setup: Setup,
    live: Session,
    ways: Sequence[Way],
    models: Sequence[str],
    display: Display,
    scoring: str,
) -> dict[str, dict[str, Any]]:
    """Returns the summaries by their ways in words, and writes them."""
    summaries = {}
    skipped = {name: len(rows.bad) for name, rows in live.checked.items()}
    asked = [way for way in ways if not way.options]
    replies = {
        way: {one: measure_all(setup, live, one, display, way) for one in models} for way in asked
    }
    train = training_data(setup.made_with, setup.run_dir.path)
    everything = [own for by_model in replies.values() for own in by_model["base"].values()]
    for name in without_values(setup.config.evaluation.by, flatten(everything)):
        older = "the replies on disk were made before the data had it"
        display.note(f"{name}: {older}; delete {setup.evaluation} to measure again")
    for way in ways:
        suffix, words = way.suffix(setup.own_prompt), way.words(setup.own_prompt)
        if way.options:
            known = replies[asked[0]] if asked else {}
            summary = measure_options(setup, live, models, display, way, known)
        else:
            if setup.judge != setup.own_judge:
                suffix += f"-judged-by-{quote(setup.judge, safe='')}"
                words = [*words, f"judged by {setup.judge}"]
            summary = summary_of(
                replies[way]["base"],
                replies[way].get("trained", {}),
                skipped,
                setup.config.evaluation.by,
                floors=floors_of(train, replies[way]["base"]),
                other_prompts=other_prompts(way, replies),
            )
            if scoring:
                summary[scoring] = {
                    model: {
                        name: SCORINGS[scoring](first_samples(own)) for name, own in its.items()
                    }
                    for model, its in replies[way].items()
                }
            if way.control and way.samples == 1:
                with_image = replies[Way(way.prompt)]
                summary["with_image_minus_this"] = {
                    model: {name: difference(replies[way][model][name], own[name]) for name in own}
                    for model, own in with_image.items()
                }
        path = setup.evaluation / f"summary{suffix}.json"
        write_text(path, json.dumps(summary, indent=2) + "\n")
        summaries[", ".join(words)] = summary
    return summaries


def other_prompts(
    way: Way, replies: Mapping[Way, Mapping[str, dict[str, list[Sample]]]]
) -> dict[str, dict[str, list[Sample]]]:
    """Returns what the base replies to the other prompts, by data set and prompt, to set the model
    against the best of them; nothing for a control or samples."""
    found: dict[str, dict[str, list[Sample]]] = {}
    for other, by_model in replies.items() if way.is_plain else ():
        if other.is_plain and other != way:
            for name, samples in by_model["base"].items():
                found.setdefault(name, {})[named("base", other.words())] = samples
    return found


def lacks(setup: Setup, live: Session, ways: Sequence[Way], models: Sequence[str]) -> bool:
    """Tells whether engines are needed."""
    for way, model, name in product(ways, models, setup.eval_data):
        exam = exam_of(setup, live, name, way)
        if way.options:
            key = options.OptionsKey(model, name)
            missing = options.missing_options(key, setup.evaluation, exam)
        else:
            progress = look_up(key_of(setup, model, name, way), setup.evaluation, exam)
            missing = progress.missing
            # A judge of the run's own comes with the engines.
            if setup.config.asks_local_judge(trains=False):
                missing = missing or [place for part in progress.waiting.values() for place in part]
        if missing:
            return True
    return False


def measure_all(
    setup: Setup, live: Session, model: str, display: Display, way: Way | None = None
) -> dict[str, list[Sample]]:
    """Returns the replies of "base" or "trained" by data set, from disk as far as they are there.
    The adapter is the one that the engines hold."""
    way, collector, replies = way or Way(), None, {}
    if live.pool is not None:
        path, longest = setup.model_path, setup.config.rollout.max_model_length
        collector = Collector(live.pool, GRADES, GRADE_SETTINGS, live.judge, path, longest)
    for name in setup.eval_data:
        exam = exam_of(setup, live, name, way)
        progress = look_up(key_of(setup, model, name, way), setup.evaluation, exam)
        if progress.is_finished:
            replies[name] = progress.samples
            continue
        what = f"measuring {named(model, way.words(setup.own_prompt))} on {name}"
        with display.counting(what, len(exam.rows)) as advance:
            replies[name] = complete(progress, collector, live.judge, advance)
    return replies


def measure_options(
    setup: Setup,
    live: Session,
    models: Sequence[str],
    display: Display,
    way: Way,
    known: Mapping[str, Mapping[str, Sequence[Sample]]],
) -> dict[str, Any]:
    """Returns what the likelihood of the options says, by model and data set, also by groups where
    replies to the same questions are `known`; data sets without options are left out."""
    summary: dict[str, Any] = {}
    for model, name in product(models, setup.eval_data):
        exam = exam_of(setup, live, name, way)
        key, what = options.OptionsKey(model, name), f"scoring {model}'s options on {name}"
        with display.counting(what, len(exam.rows)) as advance:
            scores = options.score_options(key, setup.evaluation, exam, live.pool, advance)
        if scores:
            replies = known.get(model, {}).get(name, [])
            chosen = likeliest_options(setup.evaluation, model, name, replies)
            found = summarise(chosen, setup.config.evaluation.by) if chosen else {}
            parts = {one: found[one] for one in ("by_ability", "groups") if one in found}
            summary.setdefault(model, {})[name] = options.summarise_options(scores) | parts
    return summary


def key_of(setup: Setup, model: str, data: str, way: Way) -> Measurement:
    """Returns the key of a measurement."""
    prompt = way.prompt or setup.own_prompt
    return Measurement(model, data, prompt, way.control or "none", way.samples, setup.judge)


def exam_of(setup: Setup, live: Session, name: str, way: Way) -> Exam:
    """Returns the data set's checked rows, asked in this way."""
    config = setup.config
    rows = live.checked[name].good
    image_rows = None
    if way.control == "shuffled":
        image_ids = np.array(ParquetRows(setup.eval_data[name]).column("image_id"))[rows]
        counts = live.checked[name].facts["images"].to_pylist()
        image_rows = rows[rows_with_other_images(image_ids.tolist(), counts, config.seed)]
    most = config.evaluation.max_completion_tokens or config.rollout.max_completion_tokens
    temperature = config.rollout.temperature if way.samples > 1 else 0.0
    prompts, sampling = prompts_of(config, way), SamplingSettings(way.samples, temperature, most)
    looker = None
    if way.aim is not None:
        room = config.rollout.max_model_length
        looker = Looker(setup.model_path, prompts, most, room, way.aim, config.seed)
        prompts = looking_prompts(asked_in(config, way))
    preparer = setup.preparer(setup.eval_data[name], prompts, way.control == "blank")
    return Exam(preparer, rows, sampling, config.seed, image_rows, way.control != "text", looker)


def prompts_of(config: Config, way: Way) -> PromptPlan:
    """Returns how the questions are asked. Raises UserError for a family that there is not."""
    return evaluation_prompts(asked_in(config, way))


def asked_in(config: Config, way: Way) -> PromptsConfig:
    return config.prompts.model_copy(update={"eval": way.prompt or config.prompts.eval})
