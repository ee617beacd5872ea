"""Selected training questions: by a probe, by hard negatives, and in an order from easy to hard."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rarl.commands.held_out import fingerprint
from rarl.commands.selecting import require_same_data, select, training_order
from rarl.config import load_config
from rarl.data.check import CheckedRows, RowCheck, check_rows
from rarl.data.order import CYCLE, CurriculumOrder, Selection, StepOrder, selected_order
from rarl.data.parquet import write_examples
from rarl.display import Display
from rarl.errors import UserError
from rarl.prepare.negatives import BITS, hard_negatives, other_answer_distances
from rarl.rollout.pool import SamplerPool
from rarl.tiny.dataset import draw_examples
from rarl.training.run_dir import RunDir
from tests.runs import SHORT, assert_one_line_error, rarl_here

DEMO = "configs/demo.yaml"


def test_a_curriculum_goes_from_easy_to_hard_once() -> None:
    rows, ease = np.arange(10, 30), np.repeat([0.1, 0.9, 0.5, 0.9], 5)
    order = CurriculumOrder(rows, ease, 4, seed=3)
    first = np.concatenate([order.rows_of(step) for step in range(5)])
    known = dict(zip(rows.tolist(), ease.tolist(), strict=True))
    along = [known[row] for row in first.tolist()]
    assert sorted(first.tolist()) == rows.tolist()
    assert all(a >= b for a, b in pairwise(along))
    other = CurriculumOrder(rows, ease, 4, seed=4)
    assert other.rows_of(0).tolist() != order.rows_of(0).tolist(), "ties are the seed's"
    plain = StepOrder(rows, 4, seed=3)
    for step in range(5, 10):
        assert order.rows_of(step).tolist() == plain.rows_of(step).tolist()


def test_hard_negatives_have_at_least_their_share() -> None:
    hard = np.arange(100) % 10 == 0
    chosen = Selection(np.arange(100), np.full(100, np.nan), hard, hard_share=0.3)
    order = selected_order(chosen, 10, seed=0)
    drawn = np.concatenate([order.rows_of(step) for step in range(CYCLE // 10)])
    # 300 of a cycle's 1000 draws are of the hard ones, and of the 700 others a tenth by chance.
    assert (drawn % 10 == 0).sum() == 300 + 70
    assert len(set(drawn.tolist())) == 100, "and no question is left out"


def looks_of(*numbers: int) -> np.ndarray:
    """Looks of which the first word is the number, in binary."""
    return np.array([[number, 0, 0, 0] for number in numbers], np.uint64)


def test_what_is_hard() -> None:
    rows = [
        ("Is there a fracture?", "yes", "a"),
        ("Is there a fracture?", "No.", "b"),  # one bit from a, answered otherwise
        ("Is there a fracture?", "no", "c"),  # three bits from a
        ("Is there a fracture?", "yes", "d"),
        ("Which organ is this?", "Lung", "a"),
        ("Which organ is this?", "lung!", "b"),  # no other answer anywhere
        ("Is the left kidney enlarged?", "yes", "e"),
        ("Is the right kidney enlarged?", "no", "e"),  # near words about the same image
        ("What is seen?", "a cyst", "e"),
        ("Is the heart enlarged?", "no", "d"),
    ]
    looks = looks_of(0b0, 0b1, 0b111, 0b11111111, 0b0, 0b1, 0, 0, 0, 0)
    questions, answers, images = (list(column) for column in zip(*rows, strict=True))
    found = hard_negatives(questions, answers, images, looks)
    assert found.tolist() == [True, True, False, False, False, False, True, True, False, False]


def test_distances_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    keys = [(f"q{rng.integers(3)}", f"a{rng.integers(3)}") for _ in range(700)]
    images = [f"i{rng.integers(200)}" for _ in keys]
    looks = rng.integers(0, 2**63, (700, 4), dtype=np.uint64)
    found = other_answer_distances(keys, images, looks)
    for row in range(0, 700, 7):
        bits = [
            int(np.bitwise_count(looks[row] ^ looks[other]).sum())
            for other in range(700)
            if keys[other][0] == keys[row][0]
            and keys[other][1] != keys[row][1]
            and images[other] != images[row]
        ]
        assert found[row] == min(bits, default=BITS + 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.select.difficulty=[0.9, 0.1]"], "from above to"),
        (["data.select.difficulty=[0.5, 1.5]"], "less than or equal to 1"),
        (["data.select={curriculum: true, hard_negatives: 0.2}"], "one of them at a time"),
    ],
)
def test_what_cannot_be_selected_is_an_error(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(DEMO, overrides)


def test_fewer_examples_are_among_more(ray_cluster: None, tmp_path: Path) -> None:
    data = tmp_path / "train.parquet"
    write_examples(data, draw_examples("seen", 60, 0, "train"))
    checked = check_rows(str(data), "fail", RowCheck(fingerprint))
    taken = {}
    for seed, count in ((0, 10), (0, 30), (1, 30)):
        overrides = [f"data.select.examples={count}", f"seed={seed}", f"data.train={data}"]
        setup = SimpleNamespace(config=load_config(DEMO, overrides), train_data=str(data))
        table = select(setup, checked)  # type: ignore[arg-type]
        rows = table.filter(table["taken"])["row"].to_pylist()
        assert len(rows) == count and rows == sorted(rows)
        taken[seed, count] = set(rows)
    assert taken[0, 10] < taken[0, 30] != taken[1, 30]


def test_a_run_is_not_continued_on_other_training_data(tmp_path: Path) -> None:
    data, run_dir = tmp_path / "train.parquet", RunDir(tmp_path / "run")
    write_examples(data, draw_examples("seen", 6, 0, "train"))
    for begun in (False, True):
        require_same_data(run_dir, str(data), begun)
    write_examples(data, draw_examples("seen", 6, 1, "train"))
    with pytest.raises(
        UserError, match=r"steps on other data .*; bring those data back, or choose"
    ):
        require_same_data(run_dir, str(data), begun=True)
    run_dir.training_data.unlink()
    require_same_data(run_dir, str(data), begun=True)


def test_a_selection_of_rows_that_are_gone_is_an_error(tmp_path: Path) -> None:
    data, run_dir = tmp_path / "train.parquet", RunDir(tmp_path / "run")
    write_examples(data, draw_examples("seen", 6, 0, "train"))
    run_dir.adapter.mkdir(parents=True)
    columns = {"row": [2, 6], "right": [0.5, 0.5], "hard": [False] * 2, "taken": [True] * 2}
    pq.write_table(pa.table(columns), run_dir.selection)
    config = load_config(DEMO, ["data.select.examples=2", f"data.train={data}"])
    setup = SimpleNamespace(config=config, train_data=str(data), run_dir=run_dir)
    with pytest.raises(UserError, match=r"selection\.parquet: chose rows .* bring those data back"):
        training_order(setup, CheckedRows(np.arange(6), []), Display())  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_probe_selects_what_is_trained_on(pool: SamplerPool, tmp_path: Path) -> None:
    data, run = tmp_path / "train.parquet", tmp_path / "run"
    write_examples(data, draw_examples("seen", 40, 0, "train"))
    how = [f"run_dir={run}", *SHORT, "data.eval={}", f"data.train={data}"]
    select = ["data.select.difficulty=[0.2, 0.9]", "train.checkpoint_every=1"]
    done = rarl_here("train", DEMO, *how, *select, pool=pool)
    assert_one_line_error(done, "difficulty.parquet", "rarl probe")

    done = rarl_here("probe", DEMO, *how, "--questions", "12", "-n", "4", pool=pool)
    assert done.returncode == 0, done.stderr
    done = rarl_here("train", DEMO, *how, *select, pool=pool)
    assert_one_line_error(done, "12 of 40 training questions were asked", "--questions 40")

    done = rarl_here("probe", DEMO, *how, "--questions", "40", "-n", "4", pool=pool)
    assert done.returncode == 0, done.stderr
    done = rarl_here("train", DEMO, *how, *select, "train.steps=1", pool=pool)
    assert done.returncode == 0, done.stderr
    right = {
        row["id"]: row["right"]
        for row in pq.read_table(run / "probe/difficulty.parquet").to_pylist()
    }
    ids = pq.read_table(data, columns=["id"])["id"].to_pylist()
    kept = pq.read_table(run / "selection.parquet").to_pylist()
    assert [one["right"] for one in kept] == [right[ids[one["row"]]] for one in kept]
    taken = {ids[one["row"]] for one in kept if one["taken"]}
    assert taken == {name for name, share in right.items() if 0.2 <= share <= 0.9}
    assert 0 < len(taken) < 40
    assert f"{len(taken)} of 40 training questions are asked" in done.stdout

    # A continued run goes on with what was selected, whatever a later probe would say.
    probed = pq.read_table(run / "probe/difficulty.parquet")
    known = pa.array(np.ones(len(probed)))
    place = probed.schema.get_field_index("right")
    pq.write_table(probed.set_column(place, "right", known), run / "probe/difficulty.parquet")
    done = rarl_here("train", DEMO, *how, *select, "train.steps=3", pool=pool)
    assert done.returncode == 0, done.stderr
    asked = {
        name
        for file in (run / "samples").glob("step_*.parquet")
        for name in pq.read_table(file)["example/id"].to_pylist()
    }
    assert asked and asked <= taken

    write_examples(data, draw_examples("seen", 40, 1, "train"))
    other = [f"run_dir={tmp_path / 'other'}", *how[1:], f"data.select.probe={run}"]
    done = rarl_here("train", DEMO, *other, *select, pool=pool)
    assert_one_line_error(done, "asked other training data")
