"""What a judge is asked about, and candidates and verdicts as JSON between processes."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from io import BytesIO
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, with_config

from rarl.data.images import side_by_side
from rarl.replies.tags import parse_reply
from rarl.schema import Example, Prompt, Verdict

MAX_BATCH = 64  # candidates of one request
MAX_CHARACTERS = 100_000  # of one candidate's texts together
# In JSON the key may be left out.
Text = Annotated[str | None, Field(default=None)]
Texts = Annotated[tuple[str, ...] | None, Field(default=None)]
# Never an address, which the model's server would fetch for whoever asks.
DataUri = Annotated[
    str | None,
    Field(default=None, pattern=r"^data:image/png;base64,[A-Za-z0-9+/=]+$", max_length=30_000_000),
]


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Candidate:
    """One reply to be judged.

    `reply` is the whole reply as sampled; `thinking` and `answer` are what was read from it, None
    where its tags are not what the prompt asked for. `reference` and `rationale` are the truth.
    `image` is a PNG file as a data URI, of several images side by side; None where the judge is not
    to see it, or there is none.
    """

    question: str
    options: Texts
    reference: str
    rationale: Text
    reply: str
    thinking: Text
    answer: Text
    image: DataUri = None

    @property
    def readable(self) -> bool:
        """Whether thinking and answer could be read."""
        return self.thinking is not None and self.answer is not None

    def characters(self) -> int:
        """Returns the length of all texts together."""
        _, options, *texts = asdict(replace(self, image=None)).values()
        return sum(len(text or "") for text in (self.question, *(options or ()), *texts))


def candidate_of(
    example: Example, prompt: Prompt, text: str, image: str | None = None
) -> Candidate:
    """Returns the reply `text` to `prompt`, as the judge is shown it; `image` is what `image_uri`
    makes, for a judge that sees."""
    reference = ", or ".join((example.answer, *(example.also_right or ())))
    truth = (example.question, example.options, reference, example.rationale)
    reply = parse_reply(text, prompt.form)
    return Candidate(*truth, text, reply.thinking, reply.answer, image)


def judged_image(pixels: Sequence[NDArray[np.uint8]]) -> str | None:
    """Returns the images of an example as a judge is shown them."""
    if not pixels:
        return None
    return image_uri(np.asarray(side_by_side([Image.fromarray(one) for one in pixels])))


def image_uri(pixels: NDArray[np.uint8]) -> str:
    """Returns (height, width, 3) uint8 as a PNG file in a data URI, as OpenAI's `image_url` takes
    it."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return "data:image/png;base64," + b64encode(file.getvalue()).decode()


def candidate_json(candidate: Candidate) -> dict[str, Any]:
    """Returns the candidate as JSON's types. Half a surrogate pair, which a sampler may cut off, is
    no valid JSON text and becomes a question mark."""
    text = json.dumps(asdict(candidate), ensure_ascii=False).encode(errors="replace")
    values: dict[str, Any] = json.loads(text)
    return values


class ScoreRequest(BaseModel):
    """The body of `POST /score`."""

    model_config = ConfigDict(extra="forbid")

    candidates: list[Candidate]


def require_all_keys(verdict: Any) -> Any:
    """Raises ValueError for JSON that has other keys than a Verdict: without its scores it would
    pass for one that has none."""
    names = {field.name for field in fields(Verdict)}
    if isinstance(verdict, dict) and set(verdict) != names:
        raise ValueError(f"expected the keys {', '.join(sorted(names))}")
    return verdict


class ScoreReply(BaseModel):
    """The answer to a ScoreRequest, in its order."""

    verdicts: list[Annotated[Verdict, BeforeValidator(require_all_keys)]]


def reply_of(verdicts: Sequence[Verdict]) -> bytes:
    """Returns a ScoreReply as JSON."""
    return ScoreReply(verdicts=list(verdicts)).model_dump_json().encode()
