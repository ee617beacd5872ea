"""Organ and modality in a text, by their usual names."""

from __future__ import annotations

from collections.abc import Sequence

from rarl.replies.findings import Claim, singular, split_clauses
from rarl.replies.vocabulary import WORD
from rarl.replies.words import fold

# Names of one thing in a group; those of one kind exclude each other.
MODALITIES = (
    {"xray", "radiograph", "radiography", "film"},
    {"ct", "computed tomography", "cat"},
    {"mr", "mri", "magnetic resonance"},
    {"ultrasound", "us", "sonography", "ultrasonography", "echocardiography"},
    {"pet", "scintigraphy"},
    {"angiography", "angiogram"},
    {"mammography", "mammogram"},
    {"endoscopy", "colonoscopy", "gastroscopy"},
    {"histopathology", "histology", "pathology", "microscopy"},
    {"dermoscopy"},
    {"fundus", "fundoscopy"},
    {"oct", "optical coherence tomography"},
)
REGIONS = (
    {"head", "brain", "skull", "cranial"},
    {"neck", "cervical"},
    {"chest", "thorax", "thoracic", "lung"},
    {"abdomen", "abd", "abdominal"},
    {"pelvis", "pelvic"},
    {"knee"},
    {"hand", "wrist"},
    {"foot", "ankle"},
    {"shoulder"},
    {"breast"},
    {"eye", "retina"},
    {"skin"},
)


def attribute_recall(text: str, attributes: Sequence[str]) -> float:
    """Mean over attributes of 1 where the text names it and nothing else of its kind, less where it
    names several, and 0 where it does not. A clause that denies something names nothing."""
    said = (
        " "
        + " ".join(read_words(clause) for clause in split_clauses(text) if not clause.negated)
        + " "
    )
    return sum(attribute_share(said, read_text(name)) for name in attributes) / len(attributes)


def attribute_share(said: str, name: str) -> float:
    for groups in (MODALITIES, REGIONS):
        own = [group for group in groups if names_any(f" {name} ", group)]
        if own:
            named = [group for group in groups if names_any(said, group)]
            return 1 / len(named) if own[0] in named else 0.0
    return float(all(f" {word} " in said for word in name.split()))


def names_any(said: str, group: set[str]) -> bool:
    return any(f" {name} " in said for name in group)


def read_words(clause: Claim) -> str:
    return read_text(clause.text)


def read_text(text: str) -> str:
    """Singular words with blanks between; "X-ray" and "x ray" are one word."""
    joined = fold(text).replace("x-ray", "xray").replace("x ray", "xray")
    return " ".join(singular(word) for word in WORD.findall(joined))
