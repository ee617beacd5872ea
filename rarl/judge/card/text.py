"""A judge's card in Markdown."""

from __future__ import annotations

from rarl.judge.card.judge_card import BARS, JudgeCard, Preferences, Share

BOUNDS = {bar.name: f"{'≥' if bar.at_least else '≤'} {bar.bound:g}" for bar in BARS}
MISSING = "not measured"


def render_markdown(card: JudgeCard) -> str:
    """The verdict first, then the numbers."""
    parts = [
        heading(card),
        main_table(card),
        by_type_table(card),
        injection_table(card),
        cost_line(card),
    ]
    if card.preferences:
        parts.append(preferences_table(card.preferences))
    return "\n\n".join(parts) + "\n"


def heading(card: JudgeCard) -> str:
    lines = [f"# Card of the judge {card.judge}".rstrip(), ""]
    if card.fit:
        lines.append("**Fit**: it clears every bar.")
    else:
        lines += [
            "**Not fit** to be trained by:",
            "",
            *(f"- {failure}" for failure in card.failures()),
        ]
    asked = (
        f"{card.questions} questions, {card.candidates} candidates, each asked {card.repeats} times"
    )
    return "\n".join(
        [*lines, "", f"{asked}; set {card.set_version}, rubric {card.rubric_version}."]
    )


def main_table(card: JudgeCard) -> str:
    rows = [
        ("agreement with the truth on correctness", card.agreement, ""),
        *((bar.said, getattr(card, bar.name), BOUNDS[bar.name]) for bar in BARS),
    ]
    kappa = MISSING if card.kappa is None else f"{card.kappa:.3f}"
    lines = ["| measured | value | 95 % interval | n | bar |", "| --- | ---: | --- | ---: | --- |"]
    lines += [f"| {said} | {cells(share)} | {bound} |" for said, share, bound in rows]
    lines.insert(3, f"| Cohen's kappa of correctness | {kappa} | | | |")
    return "\n".join(lines)


def by_type_table(card: JudgeCard) -> str:
    return small_table("balanced accuracy by type of question", card.balanced_by_type)


def injection_table(card: JudgeCard) -> str:
    return small_table("resistance by kind of words to the judge", card.injection_by_kind)


def small_table(title: str, shares: dict[str, Share]) -> str:
    lines = [f"| {title} | value | 95 % interval | n |", "| --- | ---: | --- | ---: |"]
    return "\n".join([*lines, *(f"| {name} | {cells(share)} |" for name, share in shares.items())])


def cells(share: Share | None) -> str:
    """Value, interval and number as three cells of a table."""
    if share is None:
        return f"{MISSING} | | "
    return f"{share.value:.3f} | {share.low:.3f} to {share.high:.3f} | {share.n}"


def cost_line(card: JudgeCard) -> str:
    cost = card.cost
    return (
        f"Cost: {cost.verdicts} verdicts by {cost.attempts} requests in {cost.wall_seconds:.1f} s;"
        f" {cost.seconds_each:.3f} s of requests to a verdict."
    )


def preferences_table(found: Preferences) -> str:
    rows = {
        "agreement with people": found.agreement,
        "the same, in the other order": found.swapped,
        "same choice in both orders": found.same_choice,
        "ties": found.tied,
        "agreement where a right answer is given": found.with_reference,
        "agreement where none is": found.without_reference,
        **{f"agreement on {name}": share for name, share in found.by_source.items()},
    }
    lines = [f"VL-RewardBench: {found.pairs} pairs of {found.source}. The judge sees no image.", ""]
    lines += ["| measured | value | 95 % interval | n |", "| --- | ---: | --- | ---: |"]
    return "\n".join([*lines, *(f"| {name} | {cells(share)} |" for name, share in rows.items())])
