"""Data by a function of the user's own, `module:function`: what it is given, and what is said when
it fails."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rarl.commands.resolve import resolve_data
from rarl.data.parquet import ParquetRows
from rarl.errors import UserError

MODULE = """\
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

TEXTS = ("id", "image_id", "question", "answer", "answer_type")


def write(path, seed):
    columns = {name: [f"{name} {seed}"] for name in TEXTS} | {"image": [b""]}
    pq.write_table(pa.table(columns), path)


def write_folder(path, seed):
    path.mkdir()
    write(path / "0.parquet", seed)


def read_table(path, seed):
    row_7 = {"answer": "left"}
    row_7["question"]


def half_written(path, seed):
    path.write_text("half")
    int("row 3: x")


def bare(path, seed):
    pq.write_table(pa.table({"id": ["a"]}), path)


def nothing(path, seed):
    pass


def without_seed(path):
    pass
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of the user's own, where the command is run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"own_{tmp_path.name.replace('-', '_')}"
    Path(f"{name}.py").write_text(MODULE, encoding="utf-8")
    return name


@pytest.mark.parametrize("function", ["write", "write_folder"])
def test_a_function_writes_to_the_path_that_it_is_given(module: str, function: str) -> None:
    """A plain function, which makes no folder first."""
    made = resolve_data("data.train", f"{module}:{function}", 3, Path("data"))
    assert made == str(Path("data/data.train.parquet").resolve())
    assert ParquetRows(made).column("question") == ["question 3"]
    resolve_data("data.train", f"{module}:{function}", 4, Path("data"))
    assert ParquetRows(made).column("question") == ["question 3"], "it is called once"
    assert [path.name for path in Path("data").iterdir()] == ["data.train.parquet"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("read_table", r"{module}\.py, line 21: KeyError: 'question'"),
        ("half_written", r"{module}\.py, line 26: ValueError: invalid literal.*'row 3: x'"),
        ("bare", r"what it wrote: column 'image' is missing \(it has: id\)"),
        ("nothing", "it wrote nothing to the path that it was given"),
        (
            "without_seed",
            r"TypeError: without_seed\(\) takes 1 positional argument but 2 were given",
        ),
    ],
)
def test_what_a_function_gets_wrong_is_one_line(module: str, function: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve_data("data.train", f"{module}:{function}", 0, Path("data"))
    line = str(caught.value)
    assert line.startswith(f"data.train={module}:{function}: ") and "\n" not in line
    assert re.search(message.format(module=module), line)
    assert not list(Path("data").iterdir()), "the next start calls it again"


def test_a_module_that_cannot_be_read_is_named_with_its_line(module: str) -> None:
    for number, (text, said) in enumerate(
        [("import os\nx = (", "SyntaxError"), ("x = 1\nx.y", "AttributeError")]
    ):
        Path(f"{module}_{number}.py").write_text(text, encoding="utf-8")
        with pytest.raises(
            UserError, match=rf"cannot be imported: .*_{number}\.py, line 2: {said}"
        ):
            resolve_data("data.train", f"{module}_{number}:write", 0, Path("data"))
