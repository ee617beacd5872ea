"""A question with its answer as one plain sentence: "Is there a mass?" with "no" becomes "There is
no mass." Its grammar is data (statements.yaml) and reads English alone. None comes of questions for
causes, treatment or what may be, of sides of the picture rather than of the patient, and of what
the grammar does not know.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from rarl.replies.concepts import content_words
from rarl.replies.words import fold, yes_or_no

MOST_WORDS = 12  # of an answer; a longer one explains more than it names
GRAMMAR: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
PARTS: dict[str, str] = {}


def pattern(text: str) -> re.Pattern[str]:
    """Returns an expression of the grammar; line ends of the file are no part of it."""
    joined = re.sub(r"\|\s+", "|", text)
    for name, part in PARTS.items():
        joined = joined.replace(f"{{{name}}}", part)
    return re.compile(joined.replace("{{", "{").replace("}}", "}"), re.IGNORECASE)


for _name, _part in GRAMMAR["parts"].items():
    PARTS[_name] = pattern(_part).pattern
BE, HAVE, THIS, SHOWN = (PARTS[name] for name in ("be", "have", "this", "shown"))
UNTOLD, PICTURE_SIDE = pattern(GRAMMAR["untold"]), pattern(GRAMMAR["picture_side"])
HEDGED, NOTHING = pattern(GRAMMAR["hedged"]), pattern(GRAMMAR["nothing"])
PREDICATE, VERB = pattern(GRAMMAR["predicate"]), PARTS["verb"]
FILLERS = [pattern(one) for one in GRAMMAR["fillers"]]
EXISTS = [pattern(one) for one in GRAMMAR["exists"]]
OPEN = [(pattern(form), kind, sentence) for form, kind, sentence in GRAMMAR["open"]]
TAIL = pattern(r"(?: (?:{shown}|located))+$")
ARTICLE = re.compile(r"^(?:an?|any|the|some|one) +", re.IGNORECASE)
PLACES = frozenset(GRAMMAR["places"].split())
DETERMINERS = frozenset(GRAMMAR["determiners"].split())
BEFORE_PREDICATE = frozenset(GRAMMAR["before_predicate"].split())
AFTER_PREDICATE = PLACES | frozenset(GRAMMAR["after_predicate"].split())
PLACED = pattern(GRAMMAR["placed"])
DENIED = re.compile(r"\b(?:no|not|without|never|absent|free of|negative for)\b", re.IGNORECASE)
SIDE = re.compile(r"(?:the )?(?:left|right)(?: side)?", re.IGNORECASE)
ENDING = re.compile(
    r"(?<=\w{3})(?:ification|ified|atation|ations?|ated|ating|ions?|ements?|ments?|ing|ed|ically|ical"
    r"|ally|al|ics?|ous|um|ar|ly|ity|ies|y|es?)$"
)


def stems(text: str) -> frozenset[str]:
    """Returns the content words of a text without their endings: "enlarged" and "enlargement" are
    one."""
    return frozenset(ENDING.sub("", word) for word in content_words(fold(text)))


def concepts(text: str) -> frozenset[str]:
    """Returns the stems of a text, one for all that the grammar has as alike."""
    return frozenset(ALIKE.get(stem, stem) for stem in stems(text))


ALIKE: dict[str, str] = {}
for _group in GRAMMAR["alike"].split():
    _words = [ENDING.sub("", one) for one in _group.split("/")]
    ALIKE |= {one: ALIKE.get(_words[0], _words[0]) for one in _words}


@dataclass(frozen=True)
class Statement:
    """A sentence about a picture. `subject` is equal for two statements that say something of the
    same in one wording; their values then tell whether it is the same. `is_polar` is one that says
    that something is so, or not."""

    sentence: str
    subject: tuple[str, ...]
    value: str
    is_polar: bool = False

    @cached_property
    def concepts(self) -> frozenset[str]:
        return concepts(self.sentence)


def said(sentence: str) -> Statement:
    """Returns a sentence that is known to be true as a statement that something is so, or not."""
    value = "no" if DENIED.search(sentence) else "yes"
    return Statement(sentence, tuple(sorted(stems(sentence))), value, is_polar=True)


def state(question: str, answer: str) -> Statement | None:
    """Returns what a question and its answer say of the picture, or None."""
    asked = " ".join(question.replace("’", "'").split()).rstrip(" ?.:")
    told = " ".join(answer.split()).rstrip(" .")
    unclear = PICTURE_SIDE.search(asked) or UNTOLD.search(asked) or HEDGED.search(told)
    if unclear or "?" in asked or not asked.isascii() or not told or len(told.split()) > MOST_WORDS:
        return None
    for filler in FILLERS:
        asked = " ".join(filler.sub("", asked).split()).strip(" ,?")
    is_so = yes_or_no(told) if len(told.split()) == 1 else None
    if is_so is not None:
        return polar_statement(asked, is_so == "yes")
    if not told.split()[0].isupper():
        told = told[0].lower() + told[1:]
    return chosen_statement(asked, told) or open_statement(asked, told)


def make(sentence: str, subject: str, value: str, is_polar: bool = False) -> Statement | None:
    """Returns a statement, unless nothing is left that it could be about."""
    sentence = " ".join(sentence.split())
    if not stems(sentence):
        return None
    about = tuple(sorted(stems(subject)))
    return Statement(f"{sentence[0].upper()}{sentence[1:]}.", about, value, is_polar)


def polar_statement(asked: str, so: bool) -> Statement | None:
    """Returns the statement of a yes/no question."""
    if re.search(r" no ", asked, re.IGNORECASE) or (so and " or " in asked):
        return None
    for form in (there_is, this_is, it_is, it_does):
        sentence = form(asked, so)
        if sentence is not None:
            return make(sentence, form(asked, True) or "", "yes" if so else "no", is_polar=True)
    return None


def there_is(asked: str, so: bool) -> str | None:
    """Reads "Is there X", "Is X present", "Can you see X", "Does the patient have X"."""
    for form in EXISTS:
        found = form.fullmatch(asked)
        if found is not None:
            what = TAIL.sub("", found["what"] + (found.groupdict().get("rest") or ""))
            # "Is this seen": of what was asked before.
            if re.match(rf"{THIS}$|{THIS} (?:a|an|the)\b", what, re.IGNORECASE):
                return None
            return existence(
                what, so, re.match(r"(?:are|were)\b", asked, re.IGNORECASE) is not None
            )
    return None


def existence(what: str, so: bool, plural: bool) -> str | None:
    if not stems(what):
        return None
    be = "are" if plural else "is"
    if re.match(r"(?:the|both|this|these)\b", what, re.IGNORECASE):
        return f"{what} {be} {'' if so else 'not '}visible"
    what = re.sub("^any ", "", what, flags=re.IGNORECASE)
    return f"There {be} {what}" if so else f"There {be} no {ARTICLE.sub('', what)}"


def this_is(asked: str, so: bool) -> str | None:
    """Reads "Is this a CT", "Was this image taken in the axial plane"."""
    found = re.fullmatch(
        rf"(is|are|was) {THIS} ((?:an?|the|in|of|from|taken|with\w*)\b.+)", asked, re.I
    )
    return found and f"This {found[1].lower()} {'' if so else 'not '}{found[2]}"


def it_is(asked: str, so: bool) -> str | None:
    """Reads "Is the heart enlarged", "Has the gallbladder been removed", "Was contrast given"."""
    found = re.fullmatch(rf"({BE}|{HAVE}) (.+)", asked, re.IGNORECASE)
    if found is None:
        return None
    be, words = found[1].lower(), found[2].split()
    index = words.index("been") if "been" in words[1:] else split_at(words)
    if index is None:
        return None
    subject, rest = " ".join(words[:index]), " ".join(words[index:])
    if words[0].lower() == "any":
        return f"{'Some' if so else 'No'} {subject[4:]} {be} {rest}"
    return f"{subject} {be} {'' if so else 'not '}{rest}"


def split_at(words: Sequence[str]) -> int | None:
    """Returns where what is said of a subject begins: at a word that can begin it and is the last,
    or before a word that can follow it; else at a second article, or the first place."""
    places = []
    for index in range(1, len(words)):
        word, before = words[index].lower(), words[index - 1].lower()
        after = words[index + 1].lower() if index + 1 < len(words) else "in"
        if before in DETERMINERS:
            continue
        if word in PLACES:
            places.append(index)
        elif word in BEFORE_PREDICATE or (word in ("a", "an") and not places):
            return index
        elif PREDICATE.fullmatch(word) and after in AFTER_PREDICATE:
            return index - 1 if index > 1 and before.endswith("ly") else index
    return places[0] if places else None


def it_does(asked: str, so: bool) -> str | None:
    """Reads "Does the mass enhance", "Do the lungs appear hyperinflated"."""
    found = re.fullmatch(rf"(does|do|did) (.+?) ({VERB})\b ?(.*)", asked, re.IGNORECASE)
    if found is None or re.match(r"(?:you|we|i)\b", found[2], re.IGNORECASE):
        return None
    does, subject, verb, rest = found[1].lower(), found[2], found[3].lower(), found[4]
    no = "" if so else "not "
    if verb in ("appear", "look", "seem") and rest:
        return f"{subject} {'are' if does == 'do' else 'is'} {no}{rest.removeprefix('to be ')}"
    return f"{subject} {does} {no}{verb} {rest}"


def chosen_statement(asked: str, told: str) -> Statement | None:
    """Reads "Is the mass solid or cystic": the answer stands in place of both."""
    asked = re.sub(
        r"^do(es)? (.+?) (?:appear|look) ", lambda m: f"{'is' if m[1] else 'are'} {m[2]} ", asked
    )
    found = re.fullmatch(rf"({BE}) (.+?) or (.+)", asked, re.IGNORECASE)
    if found is None or not stems(told) & stems(asked):
        return None
    before = found[2].split()
    if re.match(rf"{THIS}\b", found[2], re.IGNORECASE):
        *more, noun = found[3].split()
        has_noun = (
            more and noun.lower() not in told.lower() and re.match("this an? ", found[2], re.I)
        )
        noun = noun if has_noun else ""
        return make(
            f"This is {article(told) if noun else ''} {told} {noun}", "this", value_of(told)
        )
    index = split_at([*before, "in"])
    if index is None or index >= len(before):
        return None
    subject, rest = " ".join(before[:index]), before[index]
    place = f"{rest} the" if rest in PLACES and not PLACED.match(told) else ""
    told = ARTICLE.sub("", told) if place else told
    return make(f"{subject} {found[1].lower()} {place} {told}", subject, value_of(told))


def open_statement(asked: str, told: str) -> Statement | None:
    """Returns the statement of a question for what, where, which or how many."""
    asked = TAIL.sub("", asked)
    for form, kind, sentence in OPEN:
        found = form.fullmatch(asked)
        if found is None:
            continue
        named = {name: (text or "").rstrip() for name, text in found.groupdict().items()}
        x, place = TAIL.sub("", named.get("x", "")), named.get("l", "")
        if re.search(r"\b(?:you|we|do|does|what|which|where|or)\b", f"{x} {place}", re.IGNORECASE):
            return None
        subject = f"{kind} {x} {place} {named.get('q', '')}"
        verbs = re.findall(r"\b(?:is|was|are|were)\b", asked, re.IGNORECASE)
        # "Describe the lesions" has no verb to tell.
        plural = verbs[0].lower()[-1] == "e" if verbs else re.search("[^sui]s$", x) is not None
        if kind == "presence" and SIDE.fullmatch(told):
            told = f"the {ARTICLE.sub('', told).split()[0]} {x}"
        if NOTHING.fullmatch(told):
            nothing = existence(
                x if kind in ("place", "count") else f"abnormality{place}", False, plural
            )
            return make(nothing, subject, "no", is_polar=True) if nothing else None
        if kind == "view" and re.match("with", told, re.IGNORECASE):
            sentence = "This image was taken {a}"
        elif kind == "view" and re.search(pattern("{picture}$"), told):
            sentence = sentence.removesuffix(" image")
        at = told if PLACED.match(told) else f"in the {ARTICLE.sub('', told)}"
        filled = sentence.format(
            x=x,
            l=place,
            q=named.get("q"),
            v=named.get("v"),
            a=told,
            at=f"on the {ARTICLE.sub('', told)}" if SIDE.fullmatch(told) else at,
            inx=f" in {x}" if x else "",
            be="are" if plural else "is",
            art=article(told),
            the="" if ARTICLE.match(told) else "the",
        )
        return make(filled, subject, value_of(told))
    return None


def article(noun: str) -> str:
    """Returns "a" or "an", or nothing where there is an article."""
    return "" if ARTICLE.match(noun) else "an" if noun[0] in "aeiouAEIOU" else "a"


def value_of(answer: str) -> str:
    return " ".join(sorted(stems(answer))) or answer.casefold()
