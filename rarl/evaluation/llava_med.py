"""LLaVA-Med's arithmetic, faults included, so that numbers that were published with it can be
compared.

It is that of its public repository, llava/eval/run_eval.py with eval_metrics/evaluate_metrics.py
and eval_metrics/glossary.py at commit b9a98a7 (11 December 2023, the last to touch them; version
1.5 dropped the files). Its normalisation is that of the VQA challenge with its own list of marks.
There a reply is an answer and nothing else, so here the tagged answer is scored, not the thinking
before it, in which nearly any word could be found.

Known faults, kept on purpose:
- closed: "no" is found in "normal" and "not"; an answer with both "yes" and "no" is always right; a
  reference that is neither counts only if the answer also contains "yes" or "no" somewhere ("left"
  in "left abnormality").
- open: shared words count as often as the answer has them, so that repetition raises recall, and a
  word that the reference has twice is found by having it once.
- normalisation: marks become spaces or nothing depending on what else is in the text
  ("t2-weighted" is two words alone and one beside "- " or "1,000"); "none" becomes "0".
"""

from __future__ import annotations

import re
from collections import Counter

MARKS = tuple(';/[]"{}()=+\\_-><@`,?!')
# removed at most: the original passes re.UNICODE, which is 32, where the count belongs
PERIODS = 32
NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(number) for number, word in enumerate(NUMBER_WORDS.split())}
NUMBERS["none"] = "0"
# Contractions: each is also recognised with any one of its apostrophes left out.
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
SPELLINGS = {
    word[:at] + word[at + 1 :]: word
    for word in CONTRACTIONS.split()
    for at, sign in enumerate(word)
    if sign == "'"
} | {"somebody'd": "somebodyd"}  # the one entry that goes the other way


def llava_med_text(text: str) -> str:
    """Returns a text as LLaVA-Med compares it: lower case, `MARKS` removed if one of that kind has
    a space beside it or a comma stands between digits, else turned into spaces; no periods but
    decimal ones; number words as digits; no articles; contractions with their apostrophes."""
    text = text.lower()
    stripped, grouped = text, re.search(r"\d,\d", text) is not None
    for mark in MARKS:
        loose = grouped or f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if loose else " ")
    stripped = re.sub(r"\.(?!\d)", "", stripped, count=PERIODS)
    found = (NUMBERS.get(word, word) for word in stripped.split())
    return " ".join(SPELLINGS.get(word, word) for word in found if word not in ("a", "an", "the"))


def llava_med_match(answer: str, reference: str) -> float:
    """Returns 1 if the reference is a substring of an answer that holds "yes" or "no", else 0."""
    given, wanted = llava_med_text(answer), llava_med_text(reference)
    return float(("yes" in given or "no" in given) and wanted in given)


def llava_med_recall(answer: str, reference: str) -> float:
    """Returns tp / (tp + fn), where tp counts the shared words in the answer and fn the reference's
    missing ones in the reference. Both are normalised twice, as in the original."""
    given = Counter(llava_med_text(llava_med_text(answer)).split())
    wanted = Counter(llava_med_text(llava_med_text(reference)).split())
    found = sum(times for word, times in given.items() if word in wanted)
    missing = sum(times for word, times in wanted.items() if word not in given)
    return found / (found + missing) if found else 0.0
