"""The teacher: whoever looks at an image and explains how it answers a question. Here it is a
server of chat completions that sees; `own.py` has a model of ours on our own engines."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from rarl.data.images import BadImage, decode_image, png_bytes
from rarl.errors import UserError
from rarl.judge.cache import Cache
from rarl.judge.candidate import image_uri
from rarl.judge.client import Client
from rarl.judge.rubric import printable
from rarl.judge.server import ChatBackend, Subject, read_completion
from rarl.keys import read_yaml
from rarl.prepare.leaks import in_threads
from rarl.prompts import Family, option_lines
from rarl.schema import Example

WORDING = read_yaml(Path(__file__).with_name("wording.yaml"))
PARTS = re.compile(r"<explanation>(.*?)</explanation>\s*<answer>(.*?)</answer>", re.DOTALL)
PART_TAG = re.compile(r"</?(?:explanation|answer)>")
TEMPERATURE = 0.7  # so that a question that is asked again is answered otherwise
MAX_TOKENS = 1024  # of a reply: several times a long explanation, for models that think before
# Pixels of the longer side: few models look at more, and each pixel is sent and paid for.
LONGEST_SIDE = 1536
ATTEMPT_SECONDS = 120.0  # of one request
RETRIES = 4  # after about 1, 3, 9 and 27 seconds
AHEAD = 2  # questions that are ready, for each that is in flight
LISTED = Family(form="answer", wordings=[""])
# Replies to other words, or of other lengths, are never taken for each other.
ASKED = [*(WORDING[name] for name in ("system", "forms", "hint")), TEMPERATURE, MAX_TOKENS]
VERSION = hashlib.sha256(json.dumps([*ASKED, LONGEST_SIDE]).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Asking:
    """One asking of one example. `number` counts the askings of it from 0; one that is `hinted`,
    which gives the answer away, is the only one of its kind. `key` is what the reply is kept by.
    `row` is the example's in its data set. `shown` are its images as data URIs, once somebody has
    made them."""

    key: str
    row: int
    example: Example
    number: int
    hinted: bool
    shown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Said:
    """What came back. `text` is the reply, or the reason why there is none. `tokens` are those of
    prompt and completion; None: not told."""

    status: Literal["said", "cut off", "refused", "unreachable", "bad image"]
    text: str
    tokens: tuple[int, int] | None = None


class SaidCache(Cache[Said]):
    """Replies on disk; what cannot be had now may be had later, and is not kept."""

    def read(self, text: str) -> Said:
        found = json.loads(text)
        tokens = found["tokens"]
        return Said(found["status"], found["text"], (tokens[0], tokens[1]) if tokens else None)

    def keeps(self, answer: Said) -> bool:
        return answer.status not in ("unreachable", "bad image")


class Teacher(ABC):
    """`identity` is who is asked and in which words, `name` the same for people, without secrets,
    `source` what a rationale's source is called. `attempts` are requests to a server, those that
    failed included."""

    identity: tuple[str, ...]
    name: str
    source: str
    attempts = 0

    @abstractmethod
    def ask(self, questions: Iterable[Asking]) -> Iterator[tuple[Asking, Said]]:
        """Yields each question, without its images, with what was said, in whatever order they
        come. Takes only as many questions as it can ask, and has kept what it yields. Raises
        UserError where only the user can mend it."""

    @abstractmethod
    def parts(self, text: str) -> tuple[str | None, str | None]:
        """Returns explanation and answer of a reply; None where it has not the form."""

    def key_of(self, example: Example, number: int, hinted: bool) -> str:
        """Returns a hex SHA-256 over who is asked, in which words, about what, and for which time.
        The example's images are their files."""
        picture = ",".join(hashlib.sha256(image).hexdigest() for image in example.images)
        options = list(example.options or ())
        told = example.answer if hinted else None
        asked = [*self.identity, picture, example.question, options, told, number]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def without_images(question: Asking) -> Asking:
    return replace(question, example=replace(question.example, images=()), shown=())


def shrunk_uri(encoded: bytes) -> str:
    """Returns an image file as what is sent: nothing but its pixels, the longer side at most
    LONGEST_SIDE. Raises BadImage."""
    picture = decode_image(encoded)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return image_uri(np.asarray(picture))


def messages(question: Asking) -> list[dict[str, Any]]:
    """Returns the system message and the user's, with the images first, behind their labels."""
    example = question.example
    form = WORDING["forms"][example.answer_type]
    lines = [example.question, *option_lines(example, LISTED)]
    if question.hinted:
        lines.append(WORDING["hint"].format(answer=example.answer))
    content: list[dict[str, Any]] = []
    labels = example.image_labels or ("",) * len(question.shown)
    for uri, label in zip(question.shown, labels, strict=False):
        content += [{"type": "text", "text": f"{label}:"}] if label else []
        content.append({"type": "image_url", "image_url": {"url": uri}})
    content.append({"type": "text", "text": "\n".join(lines).strip()})
    return [
        {"role": "system", "content": WORDING["system"].format(form=form).strip()},
        {"role": "user", "content": content},
    ]


def plain_question(image: bool) -> Asking:
    """Returns what no server finds too long or indecent."""
    grey = png_bytes(Image.new("RGB", (56, 56), (127, 127, 127)))
    example = Example("plain", (), "plain", "Is there a lesion?", "no", "closed")
    return Asking("plain", -1, example, 0, False, (shrunk_uri(grey),) if image else ())


def cannot_see(teacher: str, reason: str) -> UserError:
    return UserError(f"the teacher {teacher} cannot see ({reason}); take a model that sees")


QUESTIONS = Subject[Asking, Said](
    role="teacher",
    address="--teacher",
    model="--model",
    key="--api-key-env",
    key_of=lambda _, question: question.key,
    shows_image=lambda question: bool(question.shown),
    plain=plain_question,
    refused=lambda reason: Said("refused", reason),
    unreachable=lambda reason: Said("unreachable", printable(reason)),
    cannot_see=cannot_see,
)


class TeacherBackend(ChatBackend[Asking, Said]):
    """Asks for one explanation a request."""

    subject = QUESTIONS
    wants = "it must support temperature, seed and max_completion_tokens"

    def _body(self, questions: Sequence[Asking]) -> dict[str, Any]:
        (question,) = questions
        return {
            "model": self.model,
            "messages": messages(question),
            "temperature": TEMPERATURE,
            "max_completion_tokens": MAX_TOKENS,
            "seed": question.number,
        }

    def _read(self, content: bytes, questions: Sequence[Asking]) -> list[Said]:
        said = read_completion(content)
        if said.refusal is not None:
            return [Said("refused", said.refusal, said.tokens)]
        status: Literal["said", "cut off"] = "cut off" if said.finish_reason == "length" else "said"
        return [Said(status, said.text or "", said.tokens)]


class RemoteTeacher(Client[Asking, Said], Teacher):
    """A server of chat completions. Nothing is sent anywhere else: redirections are not followed,
    and where `local` says that the server is this machine's, no proxy is asked."""

    def __init__(
        self,
        url: str,
        model: str,
        cache: SaidCache,
        *,
        key: str | None = None,
        variable: str | None = None,
        local: bool = True,
        concurrency: int = 8,
        timeout_seconds: float = ATTEMPT_SECONDS,
        **options: Any,  # of the client
    ) -> None:
        http = {"follow_redirects": False, "trust_env": not local}
        backend = TeacherBackend(VERSION, url, model, key, variable, timeout_seconds, **http)
        self.identity, self.name, self.source = backend.identity, backend.name, model
        self.window = AHEAD * concurrency
        settings = {"concurrency": concurrency, "retries": RETRIES, **options}
        super().__init__(backend, cache, **settings)

    def ask(self, questions: Iterable[Asking]) -> Iterator[tuple[Asking, Said]]:
        waiting: dict[Future[Said], Asking] = {}
        for one in in_threads(with_image, questions):
            if isinstance(one, tuple):
                yield one
                continue
            (future,) = self.submit([one])
            waiting[future] = without_images(one)
            if len(waiting) >= self.window:
                yield from finished(waiting)
        while waiting:
            yield from finished(waiting)

    def parts(self, text: str) -> tuple[str | None, str | None]:
        found = PARTS.search(text)
        if found is None or len(PART_TAG.findall(text)) != 4:
            return None, None
        return found[1].strip(), found[2].strip()

    def _note_attempt(self, seconds: float) -> None:
        self.attempts += 1


def with_image(question: Asking) -> Asking | tuple[Asking, Said]:
    """Returns a question with its images made ready to be sent, or why they cannot be shown."""
    try:
        return replace(question, shown=tuple(map(shrunk_uri, question.example.images)))
    except BadImage as error:
        return without_images(question), Said("bad image", str(error))


def finished(waiting: dict[Future[Said], Asking]) -> Iterator[tuple[Asking, Said]]:
    """Waits for one at least, and yields and takes out all that are answered."""
    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
    for future in done:
        yield waiting.pop(future), future.result()
