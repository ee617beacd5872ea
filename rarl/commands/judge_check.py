"""`rarl judge check`: opens a judge, measures it, writes its card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rarl.config import JudgeConfig
from rarl.display import Display
from rarl.errors import UserError
from rarl.files import write_text
from rarl.judge.backends import PLAIN, without_password
from rarl.judge.card import JudgeCard, render_markdown
from rarl.judge.card_measure import QUESTIONS, measure_judge, verdicts_needed
from rarl.judge.client import open_judge
from rarl.judge.vl_rewardbench import measure_preferences, read_vl_rewardbench


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
    fewer than two repeats, for what is wrong with the judge, and where nobody answers, of whom
    nothing can be said.
    """
    pairs = read_vl_rewardbench(vl_rewardbench) if vl_rewardbench else []
    address = f"at {without_password(config.url)}" if config.url else ""
    name = " ".join(part for part in (config.backend, config.model, address) if part)
    needed = verdicts_needed(len(QUESTIONS), repeats)
    # Replies that the judge does not answer are counted.
    config = config.model_copy(update={"on_unreachable": "continue"})
    with open_judge(config, None) as judge:
        with display.working(f"asking the judge ({name})"):
            (first,) = judge.score([PLAIN])
        if first.status == "unreachable":
            raise UserError(
                f"judge.url={without_password(config.url or '')}: the judge cannot be reached "
                f"({first.reason}), so nothing was measured; start it, or correct the address"
            )
        with display.counting("verdicts of the judge", needed) as advance:
            card = measure_judge(judge, QUESTIONS, repeats, advance, name)
        if vl_rewardbench:
            with display.counting("verdicts on VL-RewardBench", 4 * len(pairs)) as advance:
                found = measure_preferences(judge, pairs, vl_rewardbench.name, advance)
            card = replace(card, preferences=found)
    if out:
        write_text(out / "card.json", card.to_json())
        write_text(out / "card.md", render_markdown(card))
    return card
