"""The language of questions, by py3langid, which needs no download. Short questions are often
unsure: these count as none, so that a language that is named is there."""

from __future__ import annotations

from functools import cache
from typing import Any

# of VQA-RAD's 2,190 different questions, all English, none is taken for another language with this
# much
SURE = 0.9


@cache
def identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language_of(text: str) -> str | None:
    """A two-letter code, or None where it is not clear."""
    language, probability = identifier().classify(text)
    return str(language) if probability >= SURE else None
