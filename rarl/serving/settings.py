"""What the inference application is told: model, adapters, key and limits."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from rarl.config import Positive, Section, describe
from rarl.errors import UserError

# that a replica which is to go has for the requests in flight: a little more than one may take
DRAIN_SECONDS = 130.0
Seconds = Annotated[float, Field(gt=0)]


class Limits(Section):
    """What one request, and all of them together, may ask for. Whatever is above is refused before
    the engine."""

    # of a request: an image of the size below in base64, and its text
    body_bytes: Positive = 12 << 20
    image_bytes: Positive = 8 << 20  # of one image's file
    image_pixels: Positive = 40_000_000  # read from the file's head before anything is decoded
    prompt_characters: Positive = 8000  # of all texts of a request together
    completion_tokens: Positive = 512  # of one reply; also what a request that names none gets
    replies: Positive = 8  # n, and the samples of an answer
    concurrent: Positive = 64  # requests at work in one ingress replica; more get 429
    decoding: Positive = 2  # images decoded at once, since each may need 40 million pixels' memory
    body_seconds: Seconds = 10.0  # until a request's body is there
    request_seconds: Seconds = 120.0  # until its reply is complete


class ServiceConfig(Section):
    """The arguments of `rarl.serving.app:build_inference`."""

    model: str  # a folder, a Hub id, or `module:function` that returns a folder
    # of the base model, for clients
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    # a folder of run directories or PEFT folders: each is an adapter by its name
    adapters: str | None = None
    default: str | None = None  # the adapter of requests that name none; None: the base model
    # the family that asks the base model; an adapter is asked as its own run measures
    prompt: str = "reason"
    # images are shrunk to this area (1,280 image tokens of Qwen2-VL)
    max_pixels: Positive | None = 1_003_520
    samples: Positive = 5  # of an answer, where the request does not say
    judge: str | None = "judge"  # the Serve application that compares an answer with a reference
    api_key_env: str = "RARL_API_KEY"
    api_key_file: str | None = None  # instead of the variable
    open_without_key: bool = False  # to say that anybody who reaches this address may ask
    limits: Limits = Limits()
    llm: dict[str, Any] = Field(
        default_factory=dict
    )  # keys of ray.serve.llm's LLMConfig: hardware, replicas, vLLM's own arguments
    deployment: dict[str, Any] = Field(default_factory=dict)  # options of the ingress deployment

    @model_validator(mode="after")
    def consistent(self) -> ServiceConfig:
        if self.samples > self.limits.replies:
            raise ValueError(
                f"samples={self.samples} is above limits.replies={self.limits.replies}"
            )
        if self.default is not None and self.adapters is None:
            raise ValueError("default names an adapter, but adapters names no folder")
        return self


def read_settings(args: dict[str, Any]) -> ServiceConfig:
    """Raises UserError with the first mistake."""
    try:
        return ServiceConfig.model_validate(args)
    except ValidationError as error:
        raise UserError(f"inference application: {describe(error)}") from None
