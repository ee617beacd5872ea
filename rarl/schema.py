"""The nouns that travel between folders. They are plain, typed and picklable: they cross process
borders through Ray. How they lie on disk is derived from them in `samples.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rarl.patches import PatchRule

AnswerType = Literal["closed", "choice", "open", "boxes", "report"]
ANSWER_TYPES: tuple[str, ...] = get_args(AnswerType)
MOST_IMAGES = 16  # of one question, unless data.max_images says otherwise
# What a prompt asks for: thinking and answer, each in tags; the same with findings and impression
# as the thinking; the tagged answer alone; or, before the question is asked, the box of what is to
# be seen more closely (`rarl/look.py`).
ReplyForm = Literal["think", "structured", "answer", "look"]
# Marks a field that is never written to a file of samples.
IN_MEMORY: dict[str, Any] = {"in_memory": True}


@dataclass(frozen=True)
class Box:
    """Where in an image something is, in pixels of the image file, from its upper left corner."""

    label: str
    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def corners(self) -> tuple[float, float, float, float]:
        return self.x1, self.y1, self.x2, self.y2


@dataclass(frozen=True)
class Frame:
    """How a model writes places in an image: in the way of its family, a `model_type` of
    transformers, for an image of `width` x `height` pixels, which it is shown at `shown_width` x
    `shown_height`."""

    family: str
    width: int
    height: int
    shown_width: int
    shown_height: int


@dataclass(frozen=True)
class Example:
    """One question, the images that it is about, and its reference answer.

    `closed` is a yes/no question or one with a fixed answer and no option list, `choice` has
    `options`, one of which is the answer; `open` is free text. `boxes` asks for the example's
    `boxes`, which `answer` then only lists for people; `report` is a radiology report. Other
    questions may have `boxes` too, of their only image; an empty tuple says that there is nothing
    to point at. `images` holds the encoded files (JPEG, PNG, …), not pixels, in the order in which
    they are shown; a question of text has none. `image_labels`, as many, say what each is, such as
    "frontal" and "prior". `image_id` is equal for two examples exactly when they show the same
    images; a question without any has its own. `facts` are sentences that are known to be true of
    the images, `other_facts` those of a few other images of the organ, for each of them.
    `patient` and `study` are salted hashes, `site` is the hospital or scanner, where these are
    known. `also_right` are further answers that count as right. `rationale_source` is who wrote the
    rationale, `rationale_status` what is known of it (see `rarl/rationales`); None: it came with
    the data. `extra` holds the further columns of a table of the user's own, by their names there.

    A new field needs no other edit to reach data files, rewards, samples and the report.
    """

    id: str
    images: tuple[bytes, ...] = field(metadata=IN_MEMORY)
    image_id: str
    question: str
    answer: str
    answer_type: AnswerType
    options: tuple[str, ...] | None = None
    rationale: str | None = None
    modality: str | None = None
    organ: str | None = None
    dataset: str = ""
    split: str = ""
    facts: tuple[str, ...] | None = None
    other_facts: tuple[tuple[str, ...], ...] | None = None
    patient: str | None = None
    study: str | None = None
    site: str | None = None
    also_right: tuple[str, ...] | None = None
    image_labels: tuple[str, ...] | None = None
    rationale_source: str | None = None
    rationale_status: str | None = None
    boxes: tuple[Box, ...] | None = None
    extra: dict[str, str | None] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """What intervals draw as a whole: the patient where known, or else the image."""
        return self.image_id if self.patient is None else f"patient {self.patient}"


@dataclass(frozen=True)
class Prompt:
    """What an example is asked with: `text` with a placeholder for each image, the wording it was
    made from ("family/number") and the form of reply that it asks for. `frame` is how boxes are to
    be written, where the example has any or the reply is one."""

    text: str
    wording: str
    form: ReplyForm
    frame: Frame | None = None

    @property
    def family(self) -> str:
        """The family of the wording."""
        return self.wording.split("/")[0]


@dataclass(frozen=True)
class Detail:
    """What a second look showed beside the whole image: the part of it, in pixels of the image
    file, and what the first look cost, prompt and reply, in tokens."""

    x1: int
    y1: int
    x2: int
    y2: int
    look_tokens: int

    @property
    def corners(self) -> tuple[int, int, int, int]:
        return self.x1, self.y1, self.x2, self.y2


@dataclass(frozen=True)
class Answered:
    """The reply to the question after a look, and the form that was asked for."""

    text: str
    form: ReplyForm


@dataclass(frozen=True)
class PreparedExample:
    """An example and its prompt, ready for the models. `example` comes without its image files; the
    pixels below replace them. `original` is the file of the only image where its details may be
    asked for, and `detail` what of it is shown as the second image.

    pixels: (height, width, 3) uint8 of each image in order, already of the size the image processor
    keeps. prompt_token_ids: (P,) int64 with the image placeholders expanded, for the trainer, which
    also makes patches of the pixels by `patch_rule`: as float32 they are eight times as large.
    """

    example: Example
    prompt: Prompt
    pixels: tuple[NDArray[np.uint8], ...]
    prompt_token_ids: NDArray[np.int64]
    patch_rule: PatchRule
    original: bytes | None = None
    detail: Detail | None = None


@dataclass(frozen=True)
class Rollout:
    """One sampled completion.

    `prompt_token_ids` is the prompt with the image placeholders already expanded.
    `completion_token_ids` ends with the end-of-turn token when `finish_reason` is "stop"; "length"
    means that it was cut. `sampler_logprobs[t]` is the log-probability (nats) that the sampler gave
    to `completion_token_ids[t]` under the distribution it drew from: after banned tokens and
    temperature. `adapter_version` is the training step after which the adapter was published, -1
    for the base model.
    """

    text: str
    completion_token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    adapter_version: int
    prompt_token_ids: list[int] = field(default_factory=list, metadata=IN_MEMORY)
    sampler_logprobs: list[float] = field(default_factory=list, metadata=IN_MEMORY)


@dataclass(frozen=True)
class Explained:
    """How surely the base model, adapter off, gives reference answers without the images:
    `probabilities` when it reads a reply's thinking, `priors` when it reads the question alone. The
    reply's own question is the first, then other questions about its image. All are in [0, 1]:
    among the options where there are any, else the mean over the answer's tokens."""

    probabilities: list[float]
    priors: list[float]


@dataclass(frozen=True)
class Score:
    """The rewards of one completion by name, each in [0, 1] or None where it could not be scored,
    and their weighted sum."""

    total: float = 0.0
    rewards: dict[str, float | None] = field(default_factory=dict)


Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Verdict:
    """What a judge thought of one reply. `correctness` is 0 to 3; the three parts of the
    explanation are in [0, 1].

    "unparsable" (the judge refused, or gave no verdict that can be read) has zeros. "unreachable"
    has no scores at all: the reply could not be judged, which says nothing about it.
    """

    status: Literal["scored", "unparsable", "unreachable"]
    correctness: Annotated[float, Field(ge=0, le=3)] | None = None
    factuality: Fraction | None = None
    completeness: Fraction | None = None
    relevance: Fraction | None = None
    reason: str = ""

    @property
    def explanation(self) -> float | None:
        """The mean of the three parts."""
        parts = (self.factuality, self.completeness, self.relevance)
        known = [part for part in parts if part is not None]
        return sum(known) / len(known) if known else None
