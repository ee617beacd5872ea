"""What the inference application is told: its model, adapters, limits and API key."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from rarl.config import Positive, PromptsConfig, Section
from rarl.errors import UserError
from rarl.keys import validated
from rarl.prompts import Family, evaluation_prompts
from rarl.schema import MOST_IMAGES
from rarl.system.ray_internals import served_host

# Seconds that a replica which is to go has for its requests: a little more than one may take.
DRAIN_SECONDS = 130.0
SHORTEST = 16  # characters of an API key that cannot be guessed
Seconds = Annotated[float, Field(gt=0)]
BaseName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Limits(Section):
    """What one request, and all of them together, may ask for. Whatever is above is refused before
    the engine."""

    body_bytes: Positive = 12 << 20  # of a request: an image of the size below in base64, and text
    images: Annotated[int, Field(ge=0)] = MOST_IMAGES  # of one request; 0: questions of text alone
    image_bytes: Positive = 8 << 20  # of the files of a request's images together
    image_pixels: Positive = 40_000_000  # of all of them, by their heads, before any is decoded
    prompt_characters: Positive = 8000  # of all texts of a request together
    completion_tokens: Positive = 512  # of one reply; also what a request gets that names none
    replies: Positive = 8  # n, and the samples of an answer
    concurrent: Positive = 64  # requests at work in one ingress replica; more get 429
    decoding: Positive = 2  # requests whose images are decoded at once, each of 40 million pixels
    body_seconds: Seconds = 10.0  # until a request's body is there
    request_seconds: Seconds = 120.0  # until its reply is complete


class ServiceConfig(Section):
    """The arguments of `rarl.serving.app:build_inference`."""

    model: str  # a folder, a Hub id, or `module:function` that returns a folder
    name: BaseName  # of the base model, for clients
    adapters: str | None = None  # a folder whose run directories and PEFT folders are the adapters
    default: str | None = None  # the adapter of requests that name none; None: the base model
    prompt: str = "reason"  # the family that asks the base; an adapter is asked as its run measures
    templates: str | None = None  # a YAML file of families of your own, as `prompts.templates`
    max_pixels: Positive | None = 1_003_520  # images are shrunk to it (1,280 tokens of Qwen2-VL)
    samples: Positive = 5  # of an answer, where the request does not say
    judge: str | None = "judge"  # the Serve application that compares an answer with a reference
    api_key_env: str = "RARL_API_KEY"  # the environment variable that holds the API key
    api_key_file: str | None = None  # instead of the variable
    open_without_key: bool = False  # to say that anybody who reaches this address may ask
    limits: Limits = Limits()
    # Keys of ray.serve.llm's LLMConfig: hardware, replicas, vLLM's own arguments.
    llm: dict[str, Any] = Field(default_factory=dict)
    deployment: dict[str, Any] = Field(default_factory=dict)  # options of the ingress deployment

    @property
    def families(self) -> dict[str, Family]:
        """How the base may be asked. Raises UserError if `prompt` is none of them."""
        asked = PromptsConfig(eval=self.prompt, templates=self.templates)
        return evaluation_prompts(asked).families

    @property
    def family(self) -> Family:
        """How the base is asked. Raises UserError for a family that there is not."""
        return self.families[self.prompt]

    @model_validator(mode="after")
    def consistent(self) -> ServiceConfig:
        most = self.limits.replies
        if self.samples > most:
            raise ValueError(f"samples={self.samples} is above limits.replies={most}")
        if self.default is not None and self.adapters is None:
            raise ValueError("default names an adapter, but adapters names no folder")
        return self


def read_settings(args: dict[str, Any], overrides: Sequence[str] = ()) -> ServiceConfig:
    """Raises UserError with the first mistake."""
    return validated(ServiceConfig, args, overrides, "inference application")


class ApiKey:
    """A key, kept as a digest. Comparing digests takes the same time wherever two keys differ, and
    whatever their lengths."""

    def __init__(self, key: str) -> None:
        self._digest = hashlib.sha256(key.encode()).digest()

    def matches(self, authorization: str | None) -> bool:
        """Tells whether a header's value is "Bearer KEY"."""
        scheme, _, given = (authorization or "").partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        return hmac.compare_digest(digest, self._digest) and scheme.lower() == "bearer"


def read_api_key(config: ServiceConfig) -> ApiKey | None:
    """Reads the key from the file, or else from the variable; returns None if there is none. Raises
    UserError for a key that is unreadable or weak."""
    if config.api_key_file is not None:
        where = f"api_key_file={config.api_key_file}"
        try:
            key = Path(config.api_key_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise UserError(f"{where}: cannot be read: {reason}") from None
    else:
        where = f"the environment variable {config.api_key_env}"
        key = os.environ.get(config.api_key_env, "").strip()
        if not key:
            return None
    if len(key) < SHORTEST:
        advice = "`openssl rand -hex 24` makes one"
        raise UserError(f"{where}: the API key needs at least {SHORTEST} characters; {advice}")
    if not key.isascii() or not key.isprintable() or " " in key:
        allowed = "printable ASCII characters without spaces only"
        raise UserError(f"{where}: the API key may hold {allowed}")
    return ApiKey(key)


def is_loopback(host: str) -> bool:
    """Returns True for addresses that only this machine reaches."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)  # ::ffff:127.0.0.1
    return bool((mapped or address).is_loopback)


def require_key_for(host: str, key: ApiKey | None, config: ServiceConfig) -> None:
    """Raises UserError where other machines would be answered without a key."""
    if key is None and not is_loopback(host) and not config.open_without_key:
        raise UserError(
            f"http_options.host={host}: other machines reach this address, and there is no API "
            f"key; set {config.api_key_env}, or api_key_file, or say open_without_key: true"
        )


def needed_key(config: ServiceConfig) -> ApiKey | None:
    """Raises UserError where Serve is running, listens on an address that others reach, and there
    is no key."""
    key, host = read_api_key(config), served_host()
    if host is not None:
        require_key_for(host, key, config)
    return key
