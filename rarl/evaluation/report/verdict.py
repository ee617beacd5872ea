"""What the numbers of one data set come to, in plain words: the first thing that a reader sees. The
best model is set against the best of what needs no training: its base, asked with any prompt, and
the floors, which look at no image."""

from __future__ import annotations

from rarl.evaluation.group_table import Groups
from rarl.evaluation.report.gather import Report
from rarl.evaluation.report.numbers import Measure, Numbers
from rarl.evaluation.results import (
    FEWEST_QUESTIONS,
    IN_FORM,
    detectable,
    is_mostly_form,
    points_of_form,
    questions_needed,
)

WANTED_POINTS = 5  # that a comparison should be able to show


def verdict(report: Report, numbers: Numbers, data: str) -> list[str]:
    """Returns the sentences; none if the best model was not measured there."""
    best = report.best
    accuracy, gain = numbers.mean(best.name, data), numbers.gain(best.name, data)
    if accuracy is None:
        return []
    who = "the model" if not report.is_comparison or best.is_base else best.name
    right = f"answers {accuracy.mean:.1f} % of the questions right (n {accuracy.n})"
    told = [
        f"On {data}, {who} {right}" + (f", {in_words(gain)} against its base." if gain else ".")
    ]
    form = of_form(gain, numbers.gain(best.name, data, IN_FORM))
    told += form
    untrained = [one for one in report.lines if one.is_base and one.way.is_plain]
    leads = [(one, numbers.gain(best.name, data, against=one.name)) for one in untrained]
    rivals = [
        (numbers.means[one.name, data, "all", "accuracy"], one, lead) for one, lead in leads if lead
    ]
    if rivals:
        its, rival, lead = max(rivals, key=lambda each: each[0].mean)
        what = f"The best that needs no training is {rival.name} with {its.mean:.1f} % (n {its.n})"
        is_own_base = rival.kind == "base" and rival.way == best.way
        but = ", mostly of form" if form and is_own_base else ""
        told.append(f"{what}; against it, {in_words(lead)}: {judged(lead)}{but}.")
        if lead.has_interval and not lead.sign and lead.questions >= FEWEST_QUESTIONS:
            told.append(power_of(lead))
    reasoning, change = (
        numbers.mean(best.name, data, "reasoning"),
        numbers.gain(best.name, data, "reasoning"),
    )
    if reasoning and change:
        moved = ["does not clearly change", "rises clearly", "falls clearly"][change.sign]
        told.append(f"Its reasoning score {moved}: {in_words(change)}, to {reasoning.mean:.1f}.")
    others = [one for one in report.models if not one.is_base and one.is_usual]
    ranked = [(numbers.mean(one.name, data), one.name) for one in others if one is not best]
    _, second = max(((one.mean, name) for one, name in ranked if one), default=(0.0, ""))
    if second and (ahead := numbers.gain(best.name, data, against=second)):
        apart = ["not clearly apart from", "clearly ahead of", "clearly behind"][ahead.sign]
        told.append(f"It is {apart} {second}: {in_words(ahead)}.")
    behind = [one for one in numbers.groups.get((best.name, data), []) if one.is_behind]
    headlines = map(Groups.headline, behind)
    return told + [f"{headline[0].upper()}{headline[1:]}." for headline in headlines]


def of_form(gain: Measure | None, in_form: Measure | None) -> list[str]:
    """Returns a sentence if most of a clear difference from the base comes with the form of the
    replies."""
    if gain is None or not gain.sign:
        return []
    known = (in_form.mean, in_form.n) if in_form else None
    form = points_of_form(gain.mean, gain.n, known)
    if not is_mostly_form(gain.mean, form):
        return []
    where = "on questions of which a reply, before or after, has not the form that was asked for"
    rest = "there are no others" if in_form is None else f"on the others, {in_words(in_form)}"
    what = "gain" if gain.sign > 0 else "loss"
    return [f"Most of this {what} is form: {signed(form)} points are {where}; {rest}."]


def power_of(change: Measure) -> str:
    """Says which difference would have been seen, and what it takes to see a smaller one."""
    seen = detectable(change.low, change.high)
    told = f"A difference of {seen:.0f} points would be seen four times in five with so many"
    if seen <= WANTED_POINTS:
        return f"{told} questions."
    needed = questions_needed(WANTED_POINTS, change.questions, change.low, change.high)
    return f"{told} questions; for {WANTED_POINTS} points it takes about {needed:,}."


def judged(change: Measure) -> str:
    """Returns what may be called clear, and what not."""
    if change.questions < FEWEST_QUESTIONS:
        return f"fewer than {FEWEST_QUESTIONS} questions, so nothing is clear"
    return ["no clear difference", "a clear gain", "a clear loss"][change.sign]


def in_words(change: Measure) -> str:
    """Returns a difference with its interval and the number of pairs."""
    interval = f"95 % interval {signed(change.low)} to {signed(change.high)}"
    told = interval if change.has_interval else "too few for an interval"
    return f"{signed(change.mean)} points ({told}, n {change.n})"


def signed(value: float) -> str:
    """Returns a number with a minus sign, not a hyphen, and no sign before zero."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")
