"""The settings of the service: addresses, keys, and values that are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rarl.errors import UserError
from rarl.serving.settings import (
    SHORTEST,
    ApiKey,
    is_loopback,
    read_api_key,
    read_settings,
    require_key_for,
)


def test_an_address_that_others_reach_needs_a_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RARL_API_KEY", raising=False)
    config = read_settings({"model": "m", "name": "base"})
    for host in ("127.0.0.1", "127.8.0.1", "::1", "localhost"):
        require_key_for(host, None, config)
    for host in (
        "0.0.0.0",
        "::",
        "192.168.1.7",
        "10.0.0.1",
        "example.org",
        "127.0.0.1.example.org",
    ):
        with pytest.raises(
            UserError,
            match=f"{host}: other machines reach this address.*RARL_API_KEY.*open_without_key",
        ):
            require_key_for(host, read_api_key(config), config)
        require_key_for(host, ApiKey("k" * SHORTEST), config)
        require_key_for(host, None, config.model_copy(update={"open_without_key": True}))
    assert is_loopback("::ffff:127.0.0.1") and not is_loopback("::ffff:10.0.0.1")


def test_keys_come_from_the_variable_or_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text("from-a-file-0123456789\n")
    monkeypatch.setenv("RARL_API_KEY", "from-the-variable-0123456789")
    by_variable = read_api_key(read_settings({"model": "m", "name": "base"}))
    by_file = read_api_key(read_settings({"model": "m", "name": "base", "api_key_file": str(file)}))
    assert by_variable is not None and by_file is not None
    assert by_variable.matches("Bearer from-the-variable-0123456789")
    assert by_file.matches("bearer from-a-file-0123456789")
    for wrong in (
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer from-a-file-012345678",
        "Bearer from-a-file-0123456789\xff",
        "Basic from-a-file-0123456789",
    ):
        assert not by_file.matches(wrong)
    for text, message in (
        ("short", "at least 16 characters"),
        ("with a space in the middle", "printable ASCII"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message) as caught:
            read_api_key(read_settings({"model": "m", "name": "base", "api_key_file": str(file)}))
        assert text not in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        read_api_key(
            read_settings({"model": "m", "name": "base", "api_key_file": str(tmp_path / "none")})
        )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"limit": 3}, "unknown key 'limit'"),
        ({"name": "a/b"}, "name"),
        ({"samples": 9}, r"samples=9 is above limits\.replies=8"),
        ({"default": "first"}, "adapters names no folder"),
        ({"limits": {"concurrent": 0}}, r"limits\.concurrent"),
    ],
)
def test_wrong_settings_are_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_settings({"model": "m", "name": "base", **keys})
