"""A data set with rationales as `rarl data explain` leaves it, for the tests of its review."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rarl.data.parquet import write_examples
from rarl.rationales.explain import RATIONALES
from rarl.schema import Example
from tests.faulty_teacher import PLANTED, planted_examples

HOSTILE = (
    "<img src=x onerror=\"document.title='taken'\"> </script><script>alert(1)</script> & \u202eeh"
)


def write_rationales(out: Path, count: int = 8) -> list[Example]:
    """Writes OUT with one question an image: some rationales with a hint, one with markup, and one
    question without a rationale."""
    firsts = [one for one in planted_examples() if one.id.endswith("-0")][: count + 1]
    made = []
    for index, one in enumerate(firsts):
        text = PLANTED[index]["fitting"][0]
        changes = {"rationale": text, "rationale_source": "a-teacher"}
        status = "hinted" if index % 3 == 2 else "machine"
        if index == 1:
            changes["rationale"] = f"{text} {HOSTILE}"
        made.append(replace(one, **changes, rationale_status=status))
    made[count] = replace(firsts[count], rationale_source="a-teacher", rationale_status="rejected")
    out.mkdir(parents=True, exist_ok=True)
    write_examples(out / RATIONALES, made)
    return made
