"""What a paper claims, beside what was measured: from replies with known grades."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarl.errors import UserError
from rarl.evaluation.claims import (
    MeasuredLead,
    Pairs,
    check_claims,
    compare_pairs,
    verdict,
)
from rarl.evaluation.lines import Compared, ComparedLine, ComparedModel, PaperClaim, models_of
from rarl.evaluation.measurements import Measurement
from rarl.evaluation.report import write_report
from rarl.keys import validated
from rarl.samples import Sample
from tests.records import example, reply_to, write_measurement

QUESTIONS = 60
PERCENT = {"unit": "percent"}
TITLES = {"sft": "SFT", "rarl": "RARL"}


def claim(**changes: Any) -> PaperClaim:
    known: dict[str, Any] = {
        "sentence": 8,
        "says": "s",
        "model": "RARL",
        "against": "SFT",
        "metric": "accuracy",
    }
    return PaperClaim(**known | {"data": ["here"]} | changes)


def replies(right: Sequence[bool], data: str = "here") -> list[Sample]:
    return [
        reply_to(example(i, image_id=f"{data}-{i}", dataset=data), "yes" if one else "no")
        for i, one in enumerate(right)
    ]


def share(of_ten: int, shift: int = 0) -> list[bool]:
    return [(i + shift) % 10 < of_ten for i in range(QUESTIONS)]


@pytest.fixture
def lines(tmp_path: Path) -> list[ComparedModel]:
    """Two seeds on two data sets. Of ten right: here the base 3, SFT 4 and RARL 8; there the base
    and SFT 5 and RARL 5, other ones than SFT."""
    made = []
    for name, here, there in (("SFT", 4, share(5)), ("RARL", 8, share(5, 2))):
        folders = {seed: tmp_path / f"{name}-{seed}" / "evaluation" for seed in (0, 1)}
        for folder in folders.values():
            for label, own in (
                ("base", {"here": share(3), "there": share(5)}),
                ("trained", {"here": share(here), "there": there}),
            ):
                for data, right in own.items():
                    key = Measurement(label, data, "reason")
                    write_measurement(folder, key, replies(right, data))
        made.append(ComparedModel(name, folders, "reason"))
    return made


def test_points_and_per_cent_with_their_intervals(lines: list[ComparedModel]) -> None:
    models = models_of(lines)
    points, percent, both, base = check_claims(
        [
            claim(claimed=30.0),
            claim(unit="percent", claimed=150.0),
            claim(data=["here", "there"]),
            claim(against="base", claimed=40.0),
        ],
        models,
        {},
    )
    for found, value in ((points, 40.0), (percent, 100.0), (both, 20.0), (base, 50.0)):
        assert found.measured is not None
        assert found.measured.value == pytest.approx(value)
        assert found.measured.low < value < found.measured.high
    assert (points.verdict, base.verdict) == ("confirmed", "confirmed")
    assert percent.measured and percent.measured.low > 30
    assert both.measured and both.measured.n == 4 * QUESTIONS
    row = points.cells()
    assert (row["claimed"], row["measured"], row["n"]) == ("+30 points", "+40.0 points", "120")
    assert row["by"] == "RARL − SFT, accuracy on here"


def test_what_is_no_fraction_is_compared_in_its_own_unit(tmp_path: Path) -> None:
    made = []
    for name, tokens in (("SFT", 100), ("RARL", 250)):
        folder = tmp_path / name
        asked = [example(i, image_id=f"image-{i}") for i in range(QUESTIONS)]
        samples = [reply_to(one, "yes", tokens=tokens + i % 5) for i, one in enumerate(asked)]
        for label in ("base", "trained"):
            write_measurement(folder, Measurement(label, "here", "reason"), samples)
        made.append(ComparedModel(name, {0: folder}, "reason"))
    claims = [claim(metric="completion_tokens", claimed=100.0, **more) for more in ({}, PERCENT)]
    longer, percent = check_claims(claims, models_of(made), {})
    assert longer.measured is not None
    ends = (longer.measured.value, longer.measured.low, longer.measured.high)
    assert ends == pytest.approx((150.0, 150.0, 150.0))
    row = longer.cells()
    assert (row["claimed"], row["measured"]) == ("+100 tokens", "+150.0 tokens")
    assert percent.cells()["measured"] == "+147.1 %"


def test_what_is_missing_is_named_and_what_no_table_answers_is_said(
    lines: list[ComparedModel],
) -> None:
    told = [
        claim(data=["here", "elsewhere"]),
        claim(metric="judged_accuracy"),
        claim(model="RARL without this"),
        PaperClaim(sentence=1, says="Models are coming."),
        claim(metric="train_seconds", data=[], unit="percent", less=True),
    ]
    verdicts = [one.verdict for one in check_claims(told, models_of(lines), {})]
    assert verdicts == [
        "not measured on elsewhere",
        "not measured on here",
        "not measured on here",
        "no number answers it",
        "not measured",
    ]


def test_seconds_of_training_are_compared_seed_by_seed() -> None:
    asked = claim(metric="train_seconds", data=[], unit="percent", less=True)
    [found] = check_claims([asked], [], {"RARL": {0: 50, 1: 90, 2: 9}, "SFT": {0: 100, 1: 100}})
    told = found.measured
    assert told and (told.value, told.low, told.high) == pytest.approx((-30, -50, -10))
    assert told.n == 2
    assert found.verdict == "confirmed" and found.cells()["claimed"] == "< 0"
    [found] = check_claims([asked], [], {"RARL": {0: 50, 1: 120}, "SFT": {0: 100, 1: 100}})
    assert found.verdict == "not shown"


@pytest.mark.parametrize(
    ("low", "high", "claimed", "less", "told"),
    [
        (1, 9, 7.78, False, "confirmed"),
        (8, 9, 7.78, False, "confirmed"),
        (1, 5, 7.78, False, "smaller"),
        (-1, 9, 7.78, False, "not shown"),
        (0, 9, None, False, "not shown"),
        (1, 2, None, False, "confirmed"),
        (-9, -1, 7.78, False, "contradicted"),
        (-9, -1, None, True, "confirmed"),
        (1, 9, None, True, "contradicted"),
    ],
)
def test_verdicts(low: float, high: float, claimed: float | None, less: bool, told: str) -> None:
    found = MeasuredLead((low + high) / 2, low, high, 100, 100)
    assert verdict(claim(claimed=claimed, less=less), found) == told
    few = MeasuredLead(found.value, low, high, 19, 19)
    assert verdict(claim(claimed=claimed, less=less), few) == "fewer than 20 questions"


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_mean_is_that_of_the_data_sets_whatever_their_sizes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = []
    for size in rng.integers(20, 90, 3):
        before, after = rng.random((2, size)) < 0.5
        units = [f"{i // 2}" for i in range(size)]
        pairs.append(Pairs(before.astype(float), after.astype(float), units, int(size)))
    found = compare_pairs(claim(data=["a", "b", "c"]), pairs)
    means = [own.after.mean() - own.before.mean() for own in pairs]
    assert found.value == pytest.approx(100 * np.mean(means))
    assert found.low <= found.value <= found.high
    half = max((found.value - found.low), (found.high - found.value))
    assert half < 40, "three data sets know more than one"


@pytest.mark.long
def test_intervals_cover_the_truth() -> None:
    """Of a known lead and quotient, by simulation over two data sets of 60 images."""
    rng, covered = np.random.default_rng(0), {"points": 0, "percent": 0}
    runs, truth = 100, {"points": 10.0, "percent": 20.0}  # from 50 to 60
    for _ in range(runs):
        pairs = []
        for _ in range(2):
            luck = rng.random((2, 120))
            units = [f"{i // 2}" for i in range(120)]
            pairs.append(
                Pairs((luck[0] < 0.5).astype(float), (luck[1] < 0.6).astype(float), units, 120)
            )
        for unit, value in truth.items():
            found = compare_pairs(claim(unit=unit, data=["a", "b"]), pairs)
            covered[unit] += found.low <= value <= found.high
    assert all(count >= 0.86 * runs for count in covered.values()), covered


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "acuracy"}, "'acuracy' is unknown; expected train_seconds or one of accuracy"),
        ({"model": None}, "metric: accuracy needs `model` and `against`"),
        ({"data": []}, "metric: accuracy needs `data`"),
        ({"claimd": 3}, "unknown key 'claimd'; did you mean 'claimed'"),
    ],
)
def test_mistakes_in_a_claim_are_named(changes: dict[str, Any], message: str) -> None:
    tree = {"sentence": 1, "says": "s", "metric": "accuracy", "model": "a", "against": "b"}
    with pytest.raises(UserError, match=re.escape(message)):
        validated(PaperClaim, tree | {"data": ["x"]} | changes, (), "file.yaml")


def test_the_table_is_in_the_report_of_a_comparison(
    tmp_path: Path, lines: list[ComparedModel]
) -> None:
    for line in lines:
        for folder in line.folders.values():
            config = {
                "run_dir": str(folder.parent),
                "model": {"path": "a/b"},
                "data": {"train": None},
                "prompts": {"eval": "reason"},
            }
            (folder.parent / "config.yaml").write_text(json.dumps(config))
    runs = [{seed: folder.parent.name for seed, folder in line.folders.items()} for line in lines]
    made = [
        ComparedLine(title=line.title, prompt="reason", runs=own)
        for line, own in zip(lines, runs, strict=True)
    ]
    claims = [claim(claimed=30.0, says="It is <better>."), PaperClaim(sentence=1, says="Coming.")]
    Compared(reference="RARL", lines=made, claims=claims).write(tmp_path)
    page = write_report(tmp_path).read_text()
    table = page.split('id="claims"')[1].split("</section>")[0]
    assert "It is &lt;better&gt;." in table and "+30 points" in table and "confirmed" in table
    assert "no number answers it" in table
