"""`rarl judge check`: opens a judge, measures it, writes its card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rarl.config import JudgeConfig
from rarl.display import Display
from rarl.files import write_text
from rarl.judge.backend import without_password
from rarl.judge.card.card_set import load_questions
from rarl.judge.card.judge_card import JudgeCard
from rarl.judge.card.measure import measure_judge, verdicts_needed
from rarl.judge.card.text import render_markdown
from rarl.judge.card.vl_rewardbench import measure_preferences, read_vl_rewardbench
from rarl.judge.client import open_judge


def judge_check(
    config: JudgeConfig,
    out: Path | None,
    vl_rewardbench: Path | None,
    repeats: int,
    display: Display,
) -> JudgeCard:
    """Measures the judge, without a cache whatever the configuration says, and writes card.json and
    card.md into `out`.

    Raises UserError for a file of preferences that cannot be read, before anything is asked, for
    fewer than two repeats, and for what is wrong with the judge.
    """
    preferences = read_vl_rewardbench(vl_rewardbench) if vl_rewardbench else []
    questions = load_questions()
    with open_judge(config, None) as judge:
        with display.counting(
            "verdicts of the judge", verdicts_needed(len(questions), repeats)
        ) as advance:
            card = measure_judge(judge, questions, repeats, advance, name_of(config))
        if vl_rewardbench:
            with display.counting("verdicts on VL-RewardBench", 4 * len(preferences)) as advance:
                card = replace(
                    card,
                    preferences=measure_preferences(
                        judge, preferences, vl_rewardbench.name, advance
                    ),
                )
    if out:
        write_text(out / "card.json", card.to_json())
        write_text(out / "card.md", render_markdown(card))
    return card


def name_of(config: JudgeConfig) -> str:
    parts = [
        config.backend,
        config.model or "",
        f"at {without_password(config.url)}" if config.url else "",
    ]
    return " ".join(part for part in parts if part)
