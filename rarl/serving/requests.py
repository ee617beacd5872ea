"""What a request may hold. Every key is named here; one that is not is refused, since vLLM has many
that reach further than a client should: chat templates, processor arguments, addresses of media."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rarl.prompts import SPECIAL_TOKEN
from rarl.serving.refusals import Refusal, explain_validation, invalid
from rarl.serving.settings import Limits

Text = Annotated[str, Field(max_length=100_000)]
SCHEMA_CHARACTERS, SCHEMA_DEPTH, SCHEMA_BOUND = 8000, 12, 1024
JSON_DEPTH = 40
Parsed = TypeVar("Parsed", bound=BaseModel)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class TextPart(Strict):
    type: Literal["text"]
    text: Text


class ImageAddress(Strict):
    url: str
    # taken, since clients send it; the model's own size rule decides
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageAddress


class Message(Strict):
    role: Literal["system", "user", "assistant"]
    content: Text | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]


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
    """POST /v1/chat/completions: OpenAI's keys that make sense here, and vLLM's
    `return_token_ids`."""

    model: Annotated[str, Field(max_length=200)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=32)]
    max_tokens: Annotated[int, Field(gt=0)] | None = None
    max_completion_tokens: Annotated[int, Field(gt=0)] | None = None
    n: Annotated[int, Field(ge=1)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: (
        Annotated[str, Field(max_length=100)]
        | Annotated[list[Annotated[str, Field(max_length=100)]], Field(max_length=4)]
        | None
    ) = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    response_format: ResponseFormat | None = None
    return_token_ids: bool = False
    user: Annotated[str, Field(max_length=200)] | None = None  # taken, not used

    def tokens(self, limits: Limits) -> int:
        """Raises Refusal above the limit."""
        asked = self.max_completion_tokens or self.max_tokens or limits.completion_tokens
        if asked > limits.completion_tokens:
            raise invalid("max_tokens", f"at most {limits.completion_tokens} tokens in one reply")
        return asked


class AnswerRequest(Strict):
    """POST /v1/answer."""

    image: str  # a data: URL, or base64 alone
    question: Annotated[str, Field(min_length=1, max_length=2000)]
    # With two options that say yes and no the question is a closed one, and asked as training asks
    # those.
    options: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=200)]],
            Field(min_length=2, max_length=26),
        ]
        | None
    ) = None
    # or the base model's name; None: the server's default
    adapter: Annotated[str, Field(max_length=200)] | None = None
    samples: Annotated[int, Field(ge=1)] | None = None
    # has the judge compare
    reference: Annotated[str, Field(min_length=1, max_length=2000)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stream: bool = False


class PreviewRequest(Strict):
    """POST /v1/preview: the image as PNG, as the model's side decodes it."""

    image: str


def parse(kind: type[Parsed], body: bytes) -> Parsed:
    """Raises Refusal."""
    try:
        tree = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise Refusal(400, "invalid_json", "the body is not UTF-8 text") from None
    except (ValueError, RecursionError):
        raise Refusal(400, "invalid_json", "the body is not valid JSON") from None
    if not isinstance(tree, dict):
        raise Refusal(400, "invalid_json", "the body must be a JSON object")
    if depth_of(tree, JSON_DEPTH) > JSON_DEPTH:
        raise Refusal(400, "invalid_json", f"the JSON is nested more than {JSON_DEPTH} deep")
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise explain_validation(error) from None


def depth_of(tree: Any, most: int) -> int:
    """How deep lists and objects are nested, counted up to `most` + 1, level by level."""
    level = [tree]
    for depth in range(most + 1):
        level = [
            one
            for parent in level
            for one in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(one, dict | list)
        ]
        if not level:
            return depth + 1
    return most + 1


def check_texts(texts: list[str], limits: Limits, param: str) -> None:
    """Raises Refusal for too much text, and for what the chat template would read as its own
    tokens."""
    if sum(map(len, texts)) > limits.prompt_characters:
        raise Refusal(
            413,
            "prompt_too_long",
            f"{param}: at most {limits.prompt_characters:,} characters in one request",
            param,
        )
    for text in texts:
        if SPECIAL_TOKEN.search(text):
            raise invalid(
                param, f"{param}: special tokens such as <|im_start|> may not be part of a text"
            )
        if any("\ud800" <= char <= "\udfff" for char in text) or "\0" in text:
            raise invalid(param, f"{param}: not valid text")


def check_schema(schema: dict[str, Any]) -> None:
    """Raises ValueError for a schema that would be costly to turn into a grammar."""
    if len(json.dumps(schema)) > SCHEMA_CHARACTERS:
        raise ValueError(f"a schema may have {SCHEMA_CHARACTERS:,} characters")
    if depth_of(schema, SCHEMA_DEPTH) > SCHEMA_DEPTH:
        raise ValueError(f"a schema may be nested {SCHEMA_DEPTH} deep")
    for key, value in walk(schema):
        if key in ("pattern", "patternProperties", "$ref", "format"):
            raise ValueError(f"'{key}' is not supported in a schema")
        if key.startswith(("min", "max")) and isinstance(value, int) and abs(value) > SCHEMA_BOUND:
            raise ValueError(f"'{key}' may be {SCHEMA_BOUND} at most")


def walk(tree: Any) -> list[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    if isinstance(tree, dict):
        return [*tree.items(), *(pair for value in tree.values() for pair in walk(value))]
    return [pair for value in tree for pair in walk(value)] if isinstance(tree, list) else []
