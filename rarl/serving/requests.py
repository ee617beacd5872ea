"""What a request may hold, and how a request is refused.

Every key is named here, and one that is not is refused, since vLLM has many that reach further than
a client should: chat templates, processor arguments, addresses of media. Types are strict: a
boolean is no number, and a text is neither.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from starlette.responses import JSONResponse

from rarl.keys import read_yaml
from rarl.prompts import SPECIAL_TOKEN
from rarl.serving.settings import Limits

SCHEMA_CHARACTERS, SCHEMA_DEPTH, SCHEMA_BOUND = 8000, 12, 1024
TABLE = read_yaml(Path(__file__).with_name("refusals.yaml"))


class Refusal(Exception):
    """A request that gets an error, in the form that OpenAI's clients know: a status, and {"error":
    {message, type, param, code}}. `key` is its row in refusals.yaml, whose message `facts`
    complete."""

    def __init__(self, key: str, param: str | None = None, /, **facts: Any) -> None:
        row = TABLE["refusals"][key]
        super().__init__(row["message"].format(param=param, **facts))
        self.status, self.code, self.param = row["status"], row.get("code", key), param
        # In seconds; None tells the client nothing.
        self.retry_after: int | None = row.get("retry_after")

    def response(self) -> JSONResponse:
        default = "invalid_request_error" if self.status < 500 else "server_error"
        kind = TABLE["types"].get(self.status, default)
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        headers = {"cache-control": "no-store"}
        if self.retry_after:
            headers["retry-after"] = str(self.retry_after)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse({"error": error}, status_code=self.status, headers=headers)

    def event(self) -> bytes:
        """Returns the error as the last event of a stream; the official client raises it."""
        return b"data: " + bytes(self.response().body) + b"\n\n"


def not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty, or holds blanks only")
    return text


def in_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def in_part(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


Text = Annotated[str, Field(max_length=100_000)]
Name = Annotated[str, Field(max_length=200)]
Words = Annotated[str, Field(max_length=2000), AfterValidator(not_blank)]
Option = Annotated[str, Field(max_length=200), AfterValidator(not_blank)]
Label = Annotated[str, Field(max_length=200), AfterValidator(not_blank)]
Stop = Annotated[str, Field(max_length=100)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


@dataclass(frozen=True)
class NamedImage:
    """An image as a request brings it, and `param`, the place where it stands there."""

    param: str
    text: str


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ImageAddress(Strict):
    url: str
    # Clients send it, so it is accepted; the model's own size rule decides.
    detail: Literal["auto", "low", "high"] | None = None


class MessagePart(Strict):
    """A text or an image of a message."""

    type: Literal["text", "image_url"]
    text: Text | None = None
    image_url: ImageAddress | None = None

    @model_validator(mode="after")
    def what_its_type_says(self) -> MessagePart:
        given = {"text": self.text, "image_url": self.image_url}
        if [kind for kind, value in given.items() if value is not None] != [self.type]:
            raise ValueError("a part holds a text or an image_url, as its type says")
        return self


class Message(Strict):
    role: Literal["system", "user", "assistant"]
    content: Annotated[list[MessagePart], BeforeValidator(in_part)]


class JsonSchema(Strict):
    name: Annotated[str, Field(max_length=64)]
    description: Text | None = None
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def schema_where_needed(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema is needed with type json_schema, and with no other")
        if self.json_schema is not None:
            check_schema(self.json_schema.json_schema)
        return self


class StreamOptions(Strict):
    include_usage: bool = False


class ChatRequest(Strict):
    """POST /v1/chat/completions: OpenAI's keys that make sense here, vLLM's `return_token_ids`, and
    `prompt`: "auto" puts a bare question in the words that the model was trained to be asked in.
    `user` is accepted, and not used."""

    model: Name
    messages: Annotated[list[Message], Field(min_length=1, max_length=32)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    n: Count = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    seed: Seed | None = None
    stop: Annotated[list[Stop], Field(max_length=4), BeforeValidator(in_list)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    response_format: ResponseFormat | None = None
    return_token_ids: bool = False
    prompt: Literal["auto"] | None = None
    user: Name | None = None

    def parts(self) -> dict[str, MessagePart]:
        """Returns the parts of all messages by their places in the request, in order."""
        return {
            f"messages.{turn}.content.{place}": part
            for turn, message in enumerate(self.messages)
            for place, part in enumerate(message.content)
        }


class AnswerRequest(Strict):
    """POST /v1/answer. `images` are data: URLs, or base64 alone, in the order in which they are
    shown, each behind its label where there are `image_labels`; `image` is one, and a question of
    text has none. Two `options` that say yes and no make the question a closed one, asked as
    training asks those. `adapter` may be the base model's name; None is the server's default.
    `reference` has the judge compare. `boxes` asks for boxes, as training asks for them. `look`
    asks where to look first, and then the question with that detail beside the image."""

    image: str | None = None
    images: list[str] | None = None
    image_labels: list[Label] | None = None
    question: Words
    options: Annotated[list[Option], Field(min_length=2, max_length=26)] | None = None
    adapter: Name | None = None
    samples: Count | None = None
    reference: Words | None = None
    seed: Seed | None = None
    boxes: bool = False
    look: bool = False
    stream: bool = False

    def named_images(self) -> list[NamedImage]:
        """Returns the images with their places in the request. Raises Refusal for an image in two
        places, and for labels that are not as many."""
        if self.image is not None and self.images is not None:
            raise Refusal("invalid_value", "image", reason="give image or images, and not both")
        named = [NamedImage(f"images.{place}", one) for place, one in enumerate(self.images or ())]
        named += [NamedImage("image", self.image)] if self.image is not None else []
        labels = self.image_labels
        if labels is not None and len(labels) != len(named):
            reason = f"{len(labels)} labels, and {len(named)} images"
            raise Refusal("invalid_value", "image_labels", reason=reason)
        return named


class PreviewRequest(Strict):
    """POST /v1/preview: the image as PNG, as the model's side decodes it."""

    image: str


Parsed = TypeVar("Parsed", bound=Strict)


def parse(kind: type[Parsed], body: bytes) -> Parsed:
    """Raises Refusal for a body that is no JSON object of this kind. It names the first mistake's
    place, never its value: that may be an image or a patient's text."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors(include_input=False, include_url=False)
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    place = ".".join(map(str, first["loc"]))[:80]
    reason = str(first["msg"]).removeprefix("Value error, ").removeprefix("Invalid JSON: ")
    if first["type"] == "json_invalid":
        raise Refusal("invalid_json", reason=reason)
    if not place:
        raise Refusal("no_object")
    if first["type"] == "extra_forbidden":
        raise Refusal("unknown_parameter", place)
    raise Refusal("invalid_value", place, reason=reason)


def check_texts(texts: list[str], limits: Limits, param: str) -> None:
    """Raises Refusal for too much text, and for what the chat template would read as its own
    tokens."""
    if sum(map(len, texts)) > limits.prompt_characters:
        raise Refusal("prompt_too_long", param, most=limits.prompt_characters)
    if any(SPECIAL_TOKEN.search(text) for text in texts):
        reason = "special tokens such as <|im_start|> may not be part of a text"
        raise Refusal("invalid_value", param, reason=reason)
    if any("\0" in text for text in texts):
        raise Refusal("invalid_value", param, reason="not valid text")


def check_schema(tree: Any, depth: int = 1) -> None:
    """Raises ValueError for a schema that would be costly to turn into a grammar."""
    if not isinstance(tree, dict | list):
        return
    if depth > SCHEMA_DEPTH:
        raise ValueError(f"a schema may be nested {SCHEMA_DEPTH} deep")
    if depth == 1 and len(json.dumps(tree)) > SCHEMA_CHARACTERS:
        raise ValueError(f"a schema may have {SCHEMA_CHARACTERS:,} characters")
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if key in ("pattern", "patternProperties", "$ref", "format"):
            raise ValueError(f"'{key}' is not supported in a schema")
        is_bound = str(key).startswith(("min", "max")) and isinstance(value, int)
        if is_bound and abs(value) > SCHEMA_BOUND:
            raise ValueError(f"'{key}' may be {SCHEMA_BOUND} at most")
        check_schema(value, depth + 1)
