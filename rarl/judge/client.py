"""From the configuration to a judge."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from urllib.parse import urlsplit

from rarl.config import JudgeConfig
from rarl.errors import UserError
from rarl.judge.backend import Backend, without_password
from rarl.judge.cache import VerdictCache
from rarl.judge.judge import Judge
from rarl.judge.remote import RemoteJudge
from rarl.judge.rules import RulesJudge


def open_judge(config: JudgeConfig, cache_path: Path | None) -> Judge:
    """Starts a judge; nothing is asked yet. `cache_path` is where verdicts are kept, if
    `config.cache` wants it; the rules need no cache, they are faster. Raises UserError for a
    missing key variable or an unusable cache path."""
    if config.backend == "rules":
        return RulesJudge()
    backend = open_backend(config)
    return RemoteJudge(
        backend,
        open_cache(cache_path) if config.cache and cache_path else None,
        concurrency=config.concurrency,
        retries=config.retries,
        stop_when_unreachable=config.on_unreachable == "stop",
    )


def check_judge(config: JudgeConfig) -> None:
    """Raises UserError for what is wrong before anything is asked: an address that is none, a key
    that is not set."""
    if config.backend != "rules":
        check_url(config)
        read_key(config.api_key_env)


def open_backend(config: JudgeConfig) -> Backend:
    """Imports the backend's own libraries only."""
    assert config.url is not None, "checked by JudgeConfig"
    check_url(config)
    if config.backend == "openai":
        from rarl.judge.openai_backend import OpenAIBackend

        assert config.model is not None, "checked by JudgeConfig"
        key = read_key(config.api_key_env)
        return OpenAIBackend(
            config.url, config.model, key, config.api_key_env, config.timeout_seconds
        )
    from rarl.judge.serve_backend import HandleBackend, HttpBackend

    if config.url.startswith("app:"):
        return HandleBackend(config.url.removeprefix("app:"), config.timeout_seconds)
    return HttpBackend(config.url, config.timeout_seconds)


def check_url(config: JudgeConfig) -> None:
    """Raises UserError for what cannot be an address, before every candidate fails on it."""
    url = config.url or ""
    if config.backend == "serve" and url.startswith("app:"):
        return
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        forms = (
            "http://host:port/v1"
            if config.backend == "openai"
            else "http://host:port/judge or app:NAME"
        )
        raise UserError(f"judge.url: expected {forms}, got '{without_password(url)}'")


def read_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise UserError(f"judge.api_key_env: the environment variable {variable} is not set")
    return key


def open_cache(path: Path) -> VerdictCache:
    try:
        return VerdictCache(path)
    except (OSError, sqlite3.Error) as error:
        raise UserError(
            f"the judge's cache {path} cannot be opened: {error}; or set judge.cache=false"
        ) from None
