"""Findings in free text: clauses, negation, opposites, and that neither repetition nor length
pays."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarl.replies.findings import split_claims
from rarl.replies.matching import MAX_CLAIMS, compare_findings, match_claims
from rarl.tiny.phantoms import ORGANS, SIDES, Facts, rationale_for

CHEST_LEFT = "Two lungs between ribs. A round spot in the left half."


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("There is no mass.", [("mass", True)]),
        ("A mass is seen.", [("mass", False)]),
        ("Mass: absent.", [("mass", True)]),
        ("Effusion: none. Mass: yes", [("effusion", True), ("mass", False)]),
        ("Is there a mass? No effusion.", [("effusion", True)]),
        ("Findings: no mass", [("mass", True)]),
        ("A non-enhancing mass", [("nonenhancing mass", False)]),
        ("The mass is absent", [("mass", True)]),
        ("Negative for fracture", [("fracture", True)]),
        ("free of masses", [("mass", True)]),
        ("No evidence of pneumothorax", [("pneumothorax", True)]),
        ("Pneumothorax was ruled out", [("pneumothorax", True)]),
        ("it doesn't show a mass", [("mass", True)]),
        ("it doesn’t show a mass", [("mass", True)]),
        ("Neither mass nor cyst", [("", True), ("mass", True), ("cyst", True)]),
        ("A mass cannot be excluded", [("mass", False)]),
        ("A mass is not entirely ruled out", [("mass", False)]),
        ("Not only a mass but a cyst", [("mass", False), ("cyst", False)]),
        ("A mass rather than a cyst", [("mass", False), ("cyst", True)]),
        ("Clear lungs without effusion", [("clear lung", False), ("effusion", True)]),
        ("No effusion but a mass", [("effusion", True), ("mass", False)]),
        ("No mass, effusion, or nodules.", [("mass", True), ("effusion", True), ("nodule", True)]),
        ("No mass, effusion is seen, or so", [("mass", True), ("effusion", False), ("", False)]),
        ("No mass, large effusion", [("mass", True), ("effusion large", False)]),
        ("no acute or chronic infarct", [("acute chronic infarct", True)]),
        ("abnormal", [("abnormal", False)]),
        ("normal", [("normal", False)]),
        ("2.5 cm mass.", [("25_mm mass", False)]),
        ("Opacities, ribs, halves", [("opacity", False), ("rib", False), ("half", False)]),
        ("masses, metastases", [("mass", False), ("metastasis", False)]),
        ("The image shows a scan.", []),
        ("", []),
        ("¡…!?", []),
        ("ＭＡＳＳ", [("mass", False)]),
        ("m\u200bass", [("mass", False)]),
    ],
)  # fmt: skip
def test_clauses_have_content_words_and_polarity(text: str, claims: list[tuple[str, bool]]) -> None:
    expected = [
        ({word.replace("~", " effusion").replace("_", " ") for word in words.split()}, negated)
        for words, negated in claims
        if words
    ]
    assert [(set(claim.words), claim.negated) for claim in split_claims(text)] == expected


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("No lung mass", "Lung mass"),
        ("Lung mass", "No lung mass"),
        ("normal", "abnormal"),
        ("The heart is abnormal", "The heart is normal"),
        ("Opacity in the left lung base", "Opacity in the right lung base"),
        ("Upper lobe opacity", "Lower lobe opacity"),
        ("Hypodense lesion", "Hyperdense lesion"),
        ("Non-displaced fracture", "Displaced fracture"),
        ("A round spot in the left and right half", "A round spot in the left half"),
        ("No round spot", "A round spot in the left half"),
        ("A round spot in the left half", "No round spot"),
        ("bilateral effusion", "left effusion"),
        ("acute infarct", "chronic infarct"),
        ("benign mass", "malignant mass"),
    ],
)
def test_contradictions_earn_nothing(text: str, reference: str) -> None:
    match = compare_findings(text, reference)
    assert (match.f1, match.contradicted) == (0.0, 1)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("The liver is dark", "A round spot in the left half"),
        # true, though it is not the finding
        ("No round spot in the right half", "A round spot in the left half"),
        ("left lung clear", "right lung opacity"),
        ("effusion in the left lung", "effusion in the left and right lung"),  # half of the truth
        ("mass", "mass"),
    ],
)
def test_other_claims_are_no_contradictions(text: str, reference: str) -> None:
    assert compare_findings(text, reference).contradicted == 0


@pytest.mark.parametrize("organ", ORGANS)
@pytest.mark.parametrize("side", [*SIDES, None])
def test_phantoms_are_scored_claim_by_claim(organ: str, side: str | None) -> None:
    truth = rationale_for(Facts(organ, side))
    other_side = rationale_for(Facts(organ, "right" if side == "left" else "left"))
    other_organ = rationale_for(Facts(ORGANS[ORGANS.index(organ) - 1], side))
    assert compare_findings(truth, truth).f1 == 1.0
    assert compare_findings(other_side, truth).f1 == pytest.approx(2 / 23)
    assert compare_findings(other_side, truth).contradicted == 1
    assert compare_findings(other_organ, truth).f1 == pytest.approx(4 / 7)
    assert compare_findings(other_organ, truth).contradicted == 0


def test_precision_and_recall() -> None:
    assert compare_findings("Two lungs between ribs.", CHEST_LEFT).precision == 1.0
    assert compare_findings("Two lungs between ribs.", CHEST_LEFT).recall == 0.5
    more = compare_findings(CHEST_LEFT + " A broken clavicle. A dilated aorta.", CHEST_LEFT)
    assert (more.precision, more.recall, more.claims) == (pytest.approx(2 / 3), 1.0, 4)
    assert compare_findings("", CHEST_LEFT).f1 == compare_findings(CHEST_LEFT, "").f1 == 0.0


def test_repeating_or_rewording_a_right_claim_does_not_hide_a_wrong_one() -> None:
    wrong = CHEST_LEFT + " A broken clavicle."
    reworded = (
        " In the left half a round spot is seen. The left half has a round spot."
        " Ribs and two lungs."
    )
    assert compare_findings(wrong + " " + CHEST_LEFT * 20, wrong).f1 == 1.0
    for extra in (CHEST_LEFT * 20, reworded):
        assert compare_findings(wrong + extra, CHEST_LEFT).precision == pytest.approx(2 / 2.5)


def test_saying_both_earns_less_than_either() -> None:
    right, wrong = "A round spot in the left half.", "A round spot in the right half."
    organ = "Two lungs between ribs. "
    guess = (
        compare_findings(organ + right, CHEST_LEFT).f1
        + compare_findings(organ + wrong, CHEST_LEFT).f1
    ) / 2
    for both in (right + wrong, wrong + right, right + "No round spot.", "No round spot." + right):
        assert compare_findings(organ + both, CHEST_LEFT).f1 < min(
            guess, compare_findings(organ + wrong, CHEST_LEFT).f1
        )


def test_claims_beyond_the_bound_count_as_wrong() -> None:
    names = [f"{chr(97 + i // 26)}{chr(97 + i % 26)}x" for i in range(2 * MAX_CLAIMS)]
    text = ". ".join(names)
    assert compare_findings(text, text).precision == 0.5


@pytest.mark.parametrize(
    "text",
    [
        "lesion " * 10_000,
        " ".join(f"word{i}" for i in range(10_000)),
        " ".join(f"no w{i} spot." for i in range(3_500)),
        "no " + " or ".join(f"w{i}" for i in range(5_000)),
        "no " + ", ".join(f"w{i}" for i in range(5_000)) + " or x",
        "no x, " * 5_000,
        "a.b," * 5_000,
        "and " * 10_000,
        "-" * 60_000,
        "\n " * 30_000,
        "not " * 10_000,
        "non-" * 10_000,
    ],
    ids=lambda text: text[:12],
)
def test_long_texts_are_read_and_earn_nothing(text: str) -> None:
    """At once: anything worse than linear would take minutes here."""
    assert compare_findings(text, CHEST_LEFT).f1 < 0.1


CLAUSES = st.lists(
    st.sampled_from(
        [
            "A round spot in the left half",
            "A round spot in the right half",
            "No round spot",
            "Two lungs between ribs",
            "lungs and ribs",
            "A skull around two halves",
            "normal heart",
            "enlarged heart",
            "no enlarged heart",
            "the image",
            "left",
        ]
    ),
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(CLAUSES, CLAUSES, st.randoms(use_true_random=False))
def test_order_and_repetition_of_claims_do_not_matter(
    text: list[str], reference: list[str], random: object
) -> None:
    claims, wanted = split_claims(". ".join(text)), split_claims(". ".join(reference))
    match = match_claims(claims, wanted)
    shuffled = list(claims)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for other in (shuffled, claims + claims):
        again = match_claims(other, wanted)
        assert again.f1 == pytest.approx(match.f1)
        assert (again.claims, again.contradicted) == (match.claims, match.contradicted)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_is_scored_in_bounds(text: str, reference: str) -> None:
    match = compare_findings(text, reference)
    assert 0 <= match.precision <= 1
    assert 0 <= match.recall <= 1
    assert 0 <= match.f1 <= 1
    assert 0 <= match.contradicted <= match.claims
