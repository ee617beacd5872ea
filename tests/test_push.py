"""Uploads: a real client against a hub on this machine, and what is said where there is none."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from safetensors.numpy import load as load_tensors

from rarl.adapters.merging import CONFIG
from rarl.adapters.origin import FILE, WEIGHTS
from tests.hub_server import TOKEN, Hub, local_hub
from tests.runs import RARL, REPOSITORY, assert_one_line_error, environment, rarl_here
from tests.test_merge import write_run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process knows by the library's own settings, which it reads when it is
    imported, and whose token it has."""
    with local_hub() as here:
        monkeypatch.setattr(constants, "ENDPOINT", here.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield here


@pytest.fixture(scope="module")
def run(model_path: str, tmp_path_factory: Any) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "mine", model_path, 0, tokens=9)


def test_an_adapter_arrives_with_its_card_and_without_paths(run: Path) -> None:
    """By the program as a user calls it, with nobody there to answer questions."""
    with local_hub() as hub:
        own = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            [RARL, "push", str(run), "ward/mine"],
            cwd=REPOSITORY,
            env=environment() | own | {"HF_HUB_OFFLINE": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
        assert f"{hub.url}/ward/mine" in done.stdout and "private" in done.stdout
        assert hub.repos == {"ward/mine": True}
        files = hub.files["ward/mine"]
        assert set(files) >= {WEIGHTS, CONFIG, FILE, "README.md"}
        assert files[WEIGHTS] == (run / "adapter" / WEIGHTS).read_bytes()
        assert any(one.startswith("PUT /store/") for one in hub.asked), "weights go by themselves"
        assert len(load_tensors(files[WEIGHTS])) == 56
        card = files["README.md"].decode()
        assert card.startswith("---\nlibrary_name: peft\n") and "# mine\n" in card
        assert "Not for diagnosis" in card and "**It was not measured.**" in card
        assert json.loads(files[CONFIG])["base_model_name_or_path"] == "base"
        for name in (CONFIG, FILE, "README.md"):
            assert str(REPOSITORY) not in files[name].decode(), name
            assert str(run) not in files[name].decode(), name


def test_who_may_see_a_repository_is_said_when_it_is_made(run: Path, hub: Hub) -> None:
    for arguments, repos in (
        (["ward/open", "--public"], {"ward/open": False}),
        (["ward/closed"], {"ward/open": False, "ward/closed": True}),
        (["ward/closed", "--public"], {"ward/open": False, "ward/closed": True}),
    ):
        done = rarl_here("push", run / "adapter", *arguments)
        assert done.returncode == 0, done.stderr
        assert hub.repos == repos
    assert hub.files["ward/open"].keys() == hub.files["ward/closed"].keys()


def test_an_exported_folder_arrives_as_it_is(tmp_path: Path, hub: Hub) -> None:
    contents = {"config.json": b"{}", "README.md": b"# A model\n", "model.safetensors": b"x" * 9000}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    done = rarl_here("push", tmp_path, "ward/whole")
    assert done.returncode == 0, done.stderr
    assert hub.files["ward/whole"] == contents


def test_what_cannot_be_uploaded_is_one_line(
    run: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = rarl_here("push", tmp_path, "ward/mine")
    assert_one_line_error(done, f"{tmp_path}: a model without a card (README.md); `rarl export")
    done = rarl_here("push", tmp_path / "none", "ward/mine")
    assert_one_line_error(done, f"{tmp_path / 'none'}: neither a finished run directory nor")
    assert_one_line_error(rarl_here("push", run, "a/b/c"), "a/b/c: Repo id must be")
    assert not hub.asked
    assert_one_line_error(rarl_here("push", run, "forbidden/mine"), "the hub says 403", "rights")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    done = rarl_here("push", run, "ward/mine")
    assert_one_line_error(done, "ward/mine: the hub says 401", "is the token one that may")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_one_line_error(rarl_here("push", run, "ward/mine"), "HF_HUB_OFFLINE is set")
    assert not hub.repos
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", nobody)
        done = rarl_here("push", run, "ward/mine")
        assert_one_line_error(done, f"ward/mine: the hub at {nobody} cannot be reached")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    done = rarl_here("push", run, "ward/mine")
    assert_one_line_error(done, "no token for the hub: set HF_TOKEN")
