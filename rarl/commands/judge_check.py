"""`rarl judge check`: opens a judge, measures it, writes its card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rarl.config import JudgeConfig, RolloutConfig
from rarl.display import Display
from rarl.errors import UserError
from rarl.files import write_text
from rarl.judge.backends import PLAIN, without_password
from rarl.judge.card import JudgeCard, render_markdown
from rarl.judge.card_measure import measure_judge, verdicts_needed
from rarl.judge.card_set import QUESTIONS
from rarl.judge.client import open_judge
from rarl.judge.rubric import find_rubric
from rarl.judge.vl_rewardbench import measure_preferences, read_vl_rewardbench
from rarl.system.device import Device, engine_build, require_gpu


@contextmanager
def engine_alone(config: JudgeConfig, out: Path | None, display: Display) -> Iterator[Any]:
    """Inside, the engine of a local judge is up, with a Ray of its own; None for other judges."""
    if config.backend != "local":
        yield None
        return
    from rarl.commands.resolve import resolve_judge
    from rarl.commands.session import chat_settings
    from rarl.rollout.chat import chat_engine, wait_for_judge
    from rarl.system.cluster import ray_session

    # As `device: auto` does: what vLLM here is built for.
    device: Device = engine_build() or "cpu"
    if device == "cuda":
        require_gpu()
    with TemporaryDirectory(prefix="rarl-judge-") as folder:
        logs = out / "logs" if out else Path(folder)
        settings = chat_settings(config, resolve_judge(config), device, logs, RolloutConfig())
        with ray_session(logs), chat_engine(settings) as engine:
            with display.working("starting the judge"):
                wait_for_judge(engine)
            yield engine


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
    unusual = (config.rubric != "checklist" and config.rubric, config.image and "seeing")
    name = " ".join(part for part in (config.backend, config.model, address, *unusual) if part)
    needed = verdicts_needed(QUESTIONS, repeats)
    # Replies that the judge does not answer are counted.
    config = config.model_copy(update={"on_unreachable": "continue"})
    with engine_alone(config, out, display) as engine, open_judge(config, None, 1, engine) as judge:
        with display.working(f"asking the judge ({name})"):
            (first,) = judge.score([PLAIN])
        if first.status == "unreachable":
            where = f"judge.url={without_password(config.url)}" if config.url else name
            raise UserError(
                f"{where}: the judge cannot be reached "
                f"({first.reason}), so nothing was measured; start it, or correct the address"
            )
        with display.counting("verdicts of the judge", needed) as advance:
            card = measure_judge(
                judge, QUESTIONS, repeats, advance, name, find_rubric(config.rubric)
            )
        if vl_rewardbench:
            with display.counting("verdicts on VL-RewardBench", 4 * len(pairs)) as advance:
                found = measure_preferences(judge, pairs, vl_rewardbench.name, advance)
            card = replace(card, preferences=found)
    if out:
        write_text(out / "card.json", card.to_json())
        write_text(out / "card.md", render_markdown(card))
    return card
