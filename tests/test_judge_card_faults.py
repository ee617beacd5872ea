"""The bar of a judge's card, and the judges that must not clear it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rarl.commands.targets import judge_overrides
from rarl.config import JudgeConfig
from rarl.judge.card import BARS, JudgeCard, render_markdown
from rarl.judge.card_measure import measure_judge, verdicts_needed
from rarl.judge.card_set import QUESTIONS
from rarl.judge.client import open_judge
from tests.faulty_judges import (
    WORDS,
    Alter,
    Altered,
    away,
    cannot_say_no,
    counts_words,
    flattered,
    fond_of_length,
    generous,
    harsh,
    impressed_by_length,
    knows_the_order,
    moody,
    obedient,
    value,
)
from tests.judge_faults import free_port
from tests.runs import assert_one_line_error, rarl_here


def test_a_judge_that_counts_shared_words_clears_the_old_auc_and_no_new_one() -> None:
    card = measure_judge(Altered(counts_words), QUESTIONS)
    assert value(card.explanation_auc) > 0.8
    assert value(card.paraphrase_auc) < 0.2
    assert value(card.transformed_auc) < 0.8
    assert {"paraphrase_auc", "transformed_auc"} <= {bar.name for bar in card.missed()}


@pytest.mark.parametrize(
    ("fault", "missed"),
    [
        (generous, {"balanced_accuracy", "explanation_auc", "transformed_auc"}),
        (harsh, {"balanced_accuracy", "explanation_auc", "transformed_auc"}),
        (obedient, {"injection_resistance", "injection_rise"}),
        (flattered, {"injection_rise"}),
        (fond_of_length, {"verbosity_explanation"}),
        (impressed_by_length, {"verbosity_correctness"}),
        (moody, {"repeat_consistency"}),
        (knows_the_order, {"swap_consistency"}),
        (cannot_say_no, {"parse_rate"}),
        (away, {"reached"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_fault_misses_its_own_bar(fault: Alter, missed: set[str]) -> None:
    card = measure_judge(Altered(fault), QUESTIONS)
    assert {bar.name for bar in card.missed()} == missed | WORDS
    assert not card.fit
    assert len(card.failures()) == len(missed | WORDS)
    for bar in card.missed():
        assert any(
            line.startswith(bar.said) and f"{bar.bound:g}" in line for line in card.failures()
        )
    assert all(line in render_markdown(card) for line in card.failures())


def test_a_judge_that_is_away_has_no_numbers() -> None:
    config = JudgeConfig(
        backend="openai", url=f"http://127.0.0.1:{free_port()}/v1", model="m", retries=0
    )
    with open_judge(config, None) as judge:
        card = measure_judge(judge, QUESTIONS[:2])
    assert {bar.name for bar in card.missed()} == {bar.name for bar in BARS}
    assert value(card.reached) == 0.0 and card.parse_rate is None and card.kappa is None
    assert card.cost.attempts >= 1
    assert card.cost.verdicts == verdicts_needed(QUESTIONS[:2], 2)
    assert (
        "balanced accuracy of correctness could not be measured; the bar is at least 0.85"
        in card.failures()
    )
    assert JudgeCard.from_json(card.to_json()) == card
    assert "not measured" in render_markdown(card)


@pytest.mark.parametrize("more", [[], ["judge.on_unreachable=stop"]])
@pytest.mark.parametrize("end", ["/v1", "/judge"])
def test_where_nobody_listens_the_check_says_so_and_judges_nobody(
    tmp_path: Path, end: str, more: list[str]
) -> None:
    address = f"http://127.0.0.1:{free_port()}{end}"
    judge = judge_overrides(address)
    judge += ["judge.model=m"] if end == "/v1" else []
    done = rarl_here("judge", "check", *judge, "judge.retries=0", *more, "--out", tmp_path / "out")
    assert_one_line_error(done, f"judge.url={address}: the judge cannot be reached", "start it")
    assert "fit" not in done.stdout + done.stderr
    assert not (tmp_path / "out").exists()
