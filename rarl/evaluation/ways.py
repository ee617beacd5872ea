"""The ways to ask the same questions, and the replies to each that a run directory holds: another
prompt, an image that cannot help, a second look, several samples of which the majority counts, the
options' likelihood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from rarl.config import IMPORT_PATH, Config
from rarl.data.images import Control
from rarl.data.parquet import ParquetRows
from rarl.errors import UserError
from rarl.evaluation import options
from rarl.evaluation.measurements import (
    finished_measurements,
    folder_of,
    in_groups,
    marker_of,
    read_finished,
)
from rarl.evaluation.self_consistency import Sampled, vote
from rarl.look import Aim
from rarl.prepare.floors import FloorQuestion, majority_answers, nearest_answers, read_questions
from rarl.prepare.followed import question_answers
from rarl.samples import Sample
from rarl.schema import Example, Prompt, Rollout, Score

# What is shown in place of the image, or beside it, in the words of a table's lines.
CONTROLS = {
    "blank": "blank image",
    "shuffled": "another image",
    "text": "no image",
    "look": "second look",
    "look-random": "second look at a random part",
    "look-opposite": "second look at the other half",
}
# The place that each kind of second look shows closely.
AIMS: dict[str, Aim] = {"look": "own", "look-random": "random", "look-opposite": "opposite"}
Look = Literal["look", "look-random", "look-opposite"]
FLOORS = ("majority answer", "nearest question", "majority answer by site")


@dataclass(frozen=True)
class Way:
    """One way to measure. `prompt` is a family, None the run's own; `control` is what is shown
    otherwise than by the question's own images alone; several `samples` are drawn at the
    temperature of training; `options` asks for the likelihood of the options instead of replies."""

    prompt: str | None = None
    control: Control | Look | None = None
    samples: int = 1
    options: bool = False

    @property
    def aim(self) -> Aim | None:
        """What a second look shows closely; None where there is one look alone."""
        return AIMS.get(self.control or "")

    @property
    def is_plain(self) -> bool:
        """Whether the images are shown, and one greedy reply is asked for."""
        return self == Way(self.prompt)

    def words(self, usual_prompt: str | None = None) -> list[str]:
        """Returns what terminal, tables and report say of it: what is asked otherwise than usual,
        such as "prompt none", "blank image"."""
        if self.options:
            return ["likelihood of the options"]
        words = [f"prompt {self.prompt}"] if self.prompt not in (None, usual_prompt) else []
        words += [CONTROLS[self.control]] if self.control else []
        return words + ([f"majority of {self.samples} samples"] if self.samples > 1 else [])

    def suffix(self, own_prompt: str) -> str:
        """Returns the end of its summary's file name: nothing for the run's own measurement."""
        prompt = self.prompt if self.prompt != own_prompt else None
        samples = f"samples{self.samples}" if self.samples > 1 else None
        parts = (prompt, self.control, samples, "options" if self.options else None)
        return "".join(f"-{part}" for part in parts if part)


def read_ways(evaluation: Path, model: str, judge: str) -> dict[tuple[str, Way], list[Sample]]:
    """Returns one reply to each question by data set and way, of everything that was measured of
    "base" or "trained" to the end. Verdicts are those of `judge` alone."""
    found: dict[tuple[str, Way], list[Sample]] = {}
    # Another judge has read the same replies: they count where the own one has not.
    keys = sorted(finished_measurements(evaluation), key=lambda key: key.judge != judge)
    for key in (one for one in keys if one.model == model):
        control = None if key.control == "none" else cast(Control | Look, key.control)
        way = Way(key.prompt, control, key.samples)
        samples = None if (key.data, way) in found else read_finished(evaluation, key)
        if samples and key.judge != judge:
            samples = [replace(one, verdict=None) for one in samples]
        if samples:
            found[key.data, way] = majority_of(samples) if key.samples > 1 else samples
    for data in dict.fromkeys(data for data, _ in found):
        known = next(samples for (name, _), samples in found.items() if name == data)
        if chosen := likeliest_options(evaluation, model, data, known):
            found[data, Way("none", options=True)] = chosen
    return found


def majority_of(samples: Sequence[Sample]) -> list[Sample]:
    """Returns of the replies to each question the first that gives the majority's answer, with
    their `agreement` among its rewards."""
    chosen = []
    for group in in_groups(samples):
        asked = Sampled.of(group)
        found, answers = vote(asked), list(asked.answers)
        one = group[answers.index(found.answer)] if found.answer is not None else group[0]
        rewards = {**one.rewards, "agreement": found.agreement}
        chosen.append(replace(one, number=0, score=Score(0.0, rewards)))
    return chosen


def likeliest_options(
    evaluation: Path, model: str, data: str, known: Sequence[Sample]
) -> list[Sample]:
    """Returns the likeliest option of each question that has options, as a reply, with the
    reference's `option_probability` and `option_margin` among its rewards; nothing if they were not
    scored to the end. `known` are replies to the same questions."""
    key = options.OptionsKey(model, data)
    if not marker_of(evaluation / options.FOLDER, key).exists():
        return []
    asked = {(one.example.id, one.example.question): one.example for one in known}
    chosen = []
    for one in options.stored_scores(folder_of(evaluation / options.FOLDER, key)):
        if example := asked.get((one.id, one.question)):
            reply = answered(example, one.options[one.logprobs.index(max(one.logprobs))])
            assert reply.score is not None
            told = {"option_probability": one.probability, "option_margin": one.margin}
            rewards = {**reply.rewards, **told}
            chosen.append(replace(reply, score=Score(0.0, rewards)))
    return chosen


def training_data(config: Config, run: Path) -> Path | None:
    """Returns where the training data of a run are, or were; None if it has none, as a model that
    is only measured."""
    source = config.data.train
    if source is None:
        return None
    if IMPORT_PATH.match(source):
        return run / "data" / "data.train.parquet"
    return Path(source).expanduser()


def floors_of(
    train: Path | None, replies: Mapping[str, Sequence[Sample]]
) -> dict[str, dict[str, list[Sample]]]:
    """Returns what the floors answer to the same questions, by data set and by the floor's name;
    nothing without training data, or where they cannot be read any more."""
    if train is None:
        return {}
    try:
        known = read_questions(ParquetRows(train))
    except UserError:
        return {}
    return {data: floor_replies(known, own) for data, own in replies.items()}


def floor_replies(
    known: Sequence[FloorQuestion], samples: Sequence[Sample]
) -> dict[str, list[Sample]]:
    """Returns the same for one data set, from the training questions."""
    examples = [one.example for one in samples if not one.number]
    asked = [question_of(one) for one in examples]
    answers: list[Sequence[str | None]] = [
        majority_answers(known, asked),
        nearest_answers(known, asked),
    ]
    if {one.site for one in known} & {one.site for one in asked} - {None}:
        answers.append(question_answers(known, asked, "site"))
    return {
        name: [answered(one, text) for one, text in zip(examples, own, strict=True)]
        for name, own in zip(FLOORS, answers, strict=False)
    }


def question_of(example: Example) -> FloorQuestion:
    """Returns what the floors need to know of an example."""
    return FloorQuestion(**{name: getattr(example, name) for name in FloorQuestion._fields})


def answered(example: Example, answer: str | None) -> Sample:
    """Returns an answer that no model has written, as a reply: it has no tokens and no form."""
    text = "" if answer is None else f"<answer>{answer}</answer>"
    right = question_of(example).is_answered_by(answer)
    rewards = {"correct": float(right), "well_formed": None, "reasoning": None}
    prompt, rollout = Prompt("", "none/0", "answer"), Rollout(text, [], "stop", -1)
    return Sample(example, prompt, rollout, score=Score(0.0, rewards))
