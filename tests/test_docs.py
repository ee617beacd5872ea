"""What README and docs tell people to type: every command is there with its options, and every key
with its value."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from rarl.cli import app
from rarl.commands.compare import read_plan
from rarl.config import load_config
from tests.runs import DEMO, REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
CONFIGURED = ("train", "sft", "probe", "tune", "plan", "eval")  # whose key=value are of config.py
PROGRAM = re.compile(r"^(?:\S*/)?rarl +(?=[a-z])")
OVERRIDE = re.compile(r"^[a-z_]+(\.[\w-]+)+=.+$")
LEFT_OUT = "…"
JUDGE = ["judge.backend=openai", "judge.model=one", "judge.url=http://127.0.0.1:8000/v1"]


def blocks_of(page: Path, language: str = "") -> list[str]:
    found = re.findall(
        rf"^ *```{language}\n(.*?)^ *```",
        page.read_text(encoding="utf-8"),
        re.DOTALL | re.MULTILINE,
    )
    return [str(one) for one in found]


def spans_of(page: Path) -> list[str]:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return [one.replace("\\|", "|").replace("\n", " ") for one in re.findall(r"`([^`]+)`", text)]


def commands_of(page: Path) -> list[str]:
    """Returns what is typed after `rarl`, in blocks and within sentences."""
    lines = [re.sub(r"\\\n *", "", block).splitlines() for block in blocks_of(page)]
    typed = [line.strip() for block in lines for line in block] + spans_of(page)
    return [PROGRAM.sub("", one) for one in typed if PROGRAM.match(one)]


def parts_of(typed: str) -> tuple[Any, list[str], list[str]]:
    """Returns the command, its names, and its arguments. The marks of a usage line are left out."""
    is_usage = re.search(r" \[", typed)
    text = re.sub(rf"[\[\]{LEFT_OUT}]", "", typed).replace("|--", " --") if is_usage else typed
    words, names = shlex.split(numbered(text), comments=True), list[str]()
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        names.append(words.pop(0))
        assert names[-1] in command.commands, f"rarl {typed}: no such command"
        command = command.commands[names[-1]]
    return command, names, words


def numbered(text: str) -> str:
    """A single capital stands for a number."""
    return re.sub(r"\b[A-Z]\b", "1", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_there_with_its_options(page: Path) -> None:
    for typed in commands_of(page):
        command, names, words = parts_of(typed)
        known = {option for one in command.params for option in one.opts}
        options = {word for word in words if re.match("-{1,2}[a-z]", word)}
        assert options <= known, f"rarl {typed}: {options - known}"
        if words and set(words) != options and LEFT_OUT not in words:
            command.make_context(" ".join(names), words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_key_is_there_and_takes_its_value(page: Path) -> None:
    """A judge is told where it is."""
    given = [re.split(r" (?=judge\.)", one) for one in spans_of(page) if OVERRIDE.match(one)]
    for typed in commands_of(page):
        _, names, words = parts_of(typed)
        if names[0] in CONFIGURED:
            given += [[one.split(",")[0] if "{" not in one else one] for one in words]
    for overrides in given:
        if all(OVERRIDE.match(one) for one in overrides) and LEFT_OUT not in overrides[0]:
            judge = JUDGE if overrides[0].startswith("judge.") else []
            load_config(DEMO, [*judge, *map(numbered, overrides)])


def test_the_configuration_of_the_first_real_run_loads(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    whole, compared = blocks_of(REPOSITORY / "docs/first-real-run.md", "yaml")
    mine = tmp_path / "mine.yaml"
    mine.write_text(re.sub(r"^ {3}", "", whole, flags=re.M), encoding="utf-8")
    first = load_config(mine)
    assert first.train.steps == 200
    assert first.evaluation.validation == "validation" and "elsewhere" in first.data.eval
    several = tmp_path / "compare-mine.yaml"
    several.write_text(re.sub(r"^ {2}", "", compared, flags=re.M), encoding="utf-8")
    plan = read_plan(several, [], check=False)
    assert list(plan.comparison.models) == ["sft", "rl", "rarl"]
    assert set(plan.data_sets()) == {"mine", "elsewhere"}
