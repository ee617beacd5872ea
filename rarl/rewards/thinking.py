"""Rewards for the thinking: `reasoning`, how good the explanation is without a judge;
`consistency`, whether it alone leads to the reply's own answer; `explains`, how much surer it makes
a reader of the reference answer; and `fluency`, whether it is language at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from rarl.replies import findings
from rarl.replies.answers import answers_alike
from rarl.replies.concepts import content_words
from rarl.replies.findings import Claim
from rarl.replies.grading import attribute_recall, is_yes_no
from rarl.replies.lexicon import Lexicon, read_lexicon
from rarl.replies.matching import conflict, match_claims, support
from rarl.replies.tags import asks_thinking, parse_reply
from rarl.replies.tricks import addresses_the_judge, concludes, states_answer
from rarl.replies.wording import known_words
from rarl.replies.words import length_in_words
from rarl.rewards import Options, per_reply
from rarl.rewards.form import length_factor
from rarl.schema import AnswerType, Explained, Frame, ReplyForm

Words = frozenset[str]
# Overlap from which a clause that could be the answer in words is a finding of the rationale.
SAME = 0.75
# Of a thinking's words; a telegram has 0.7, a wordy sentence 0.3.
MIN_CONTENT_SHARE = 0.2
# Other questions about an image whose answers a thinking should lead to.
SIBLINGS = 3


@per_reply
def consistency_reward(
    text: str,
    *,
    form: ReplyForm,
    rederived: str | None,
    answer: str,
    answer_type: AnswerType,
    options: Options,
    frame: Frame | None,
) -> float | None:
    """Pays 1 where the policy, shown its thinking in place of the image, gives the same answer
    again, else 0 (CAPO, arXiv 2506.12849); 0 for a malformed reply, None for a prompt without
    thinking or where it was not asked again.

    Right or wrong makes no difference: let `accuracy` gate it, or thinking that repeats a guess is
    paid.
    """
    if not asks_thinking(form):
        return None
    reply = parse_reply(text, form)
    if not reply.well_formed or not reply.answer:
        return 0.0
    if rederived is None:
        return None
    again = parse_reply(rederived, "answer").answer
    if not again:
        return 0.0
    own = reply.answer
    return float(answers_alike(own, again, answer, answer_type, options=options, frame=frame))


@per_reply
def explains_reward(
    text: str, *, form: ReplyForm, explained: Explained | None, siblings: int = SIBLINGS
) -> float | None:
    """Pays what the thinking adds to a reader's belief in what is true of the image: the mean of
    (1 + p − p₀)/2 over the reply's own question and up to `siblings` other training questions about
    the image. p and p₀ are the base model's probabilities of the reference answer when it reads the
    thinking, without the image and without the clauses that state an answer, and when it reads the
    question alone. Silence earns 1/2, and so does on average a guess with the odds of the reader.

    A likelihood in place of a verifier is from VeriFree (arXiv 2505.21493, eq. 3), the subtraction
    of what is known without thinking from RLPR (arXiv 2506.18254, eq. 4). That the reader is frozen
    and blind is ours: it learns no code, and has nothing else to go by.

    0 for a malformed reply, for one without thinking and for one that speaks to whoever scores it.
    None for a prompt without thinking, and where nobody was asked.
    """
    if not asks_thinking(form):
        return None
    reply = parse_reply(text, form)
    if not reply.well_formed or not reply.thinking or addresses_the_judge(text):
        return 0.0
    if explained is None or not explained.priors:
        return None
    pairs = zip(explained.probabilities, explained.priors, strict=True)
    gains = [probability - prior for probability, prior in islice(pairs, 1 + siblings)]
    return (1 + math.fsum(gains) / len(gains)) / 2


@per_reply
def fluency_reward(
    text: str, *, form: ReplyForm, thinking_logprob: float | None, floor: float | None = None
) -> float | None:
    """Pays 1 for thinking that is language as the base model knows it, and less for words in an
    order that nobody would say: exp(ℓ − `floor`) below the floor, where ℓ is the base model's mean
    log-probability (nats) of the thinking's tokens, without the image. Without an option, the floor
    is what 99 in 100 replies of the base model have (`rarl.commands.fluency`).

    Right or wrong makes no difference, and above the floor nothing is gained: it is made to gate
    others. 0 for a malformed reply and one without thinking. None for a prompt without thinking,
    and where nobody was asked.
    """
    if not asks_thinking(form):
        return None
    reply = parse_reply(text, form)
    if not reply.well_formed or not reply.thinking:
        return 0.0
    if thinking_logprob is None or floor is None:
        return None
    return math.exp(min(0.0, thinking_logprob - floor))


@dataclass(frozen=True)
class KnownText:
    """What is known of an example beside its image."""

    question: str
    answer: str
    rationale: str | None
    attributes: list[str]  # organ and modality
    lexicon: Lexicon

    @cached_property
    def claims(self) -> list[Claim]:
        return findings.split_claims(self.rationale or "", lexicon=self.lexicon)

    @cached_property
    def asked(self) -> Words:
        return content_words(self.question, self.lexicon)

    @cached_property
    def references(self) -> list[Claim]:
        """Returns the rationale's claims, but for those that the question already holds or that
        are the answer."""
        answers = [content_words(self.answer, self.lexicon)]
        new = (claim for claim in self.claims if claim.negated or not claim.words <= self.asked)
        return [claim for claim in new if not states_answer(claim, answers)]


@per_reply
def reasoning_reward(
    text: str,
    *,
    form: ReplyForm,
    question: str,
    answer: str,
    rationale: str | None,
    organ: str | None,
    modality: str | None,
    min_words: int = 3,
    max_words: int = 200,
    leak_factor: float = 0.5,
    attributes: bool = False,
    lexicon: str = "",
) -> float | None:
    """Pays the F1 of the thinking's findings against the rationale's, negation-aware. Without a
    rationale nothing is paid (None), or with `attributes` the share of organ and modality that it
    names: a weak signal, that is soon earned by saying them and inventing the rest. RARL (arXiv
    2506.06600) pays for the reasoning without saying how; this measure is ours, after MedR-Bench,
    which scores factuality and completeness per step. Times, each in [0, 1]:

    - `leak_factor` where the answer or a conclusion comes before the first finding that is right;
    - the share of clauses that are not repeats, and of content words (below a fifth of all, in
      proportion);
    - the length: 1 from `min_words` to `max_words` words, 0 at twice the maximum. Longer pays
      nothing.

    Clauses that only repeat the question are no findings. 0 for a malformed reply and for one that
    speaks to whoever scores it. None for a prompt without thinking, and where nothing is known to
    compare it with.
    """
    if not asks_thinking(form):
        return None
    named = [one for one in (organ, modality) if one]
    known = KnownText(question, answer, rationale, named, read_lexicon(lexicon or None))
    # To name the one that is asked for is to answer.
    asked_for = content_words(answer, known.lexicon)
    named = [one for one in known.attributes if attributes and not content_words(one) & asked_for]
    if not known.references and not named:
        return None
    reply = parse_reply(text, form)
    if not reply.well_formed or not reply.thinking or addresses_the_judge(text):
        return 0.0
    sayable = known_words(question, answer, rationale, organ, modality)
    clauses = findings.split_clauses(reply.thinking, sayable, known.lexicon)
    answers = [asked_for, content_words(reply.answer or "", known.lexicon)]
    if known.references:
        kept = evidence(clauses, known, answers)
        value = match_claims(kept, known.references, known.lexicon).f1
        leaked = is_leaked(clauses, known, answers)
    else:
        value = attribute_recall(reply.thinking, named)
        leaked = any(states_answer(clause, answers) for clause in clauses[:1])
    # Below 1 where hardly a word says something.
    content = sum(len(clause.words) for clause in clauses)
    length = length_factor(reply.thinking, min_words, max_words)
    length *= min(1.0, content / (MIN_CONTENT_SHARE * length_in_words(reply.thinking)))
    claims = [clause for clause in clauses if clause.words]
    variety = len(set(claims)) / len(claims) if claims else 0.0
    return value * length * (leak_factor if leaked else 1.0) * variety


def evidence(clauses: Sequence[Claim], known: KnownText, answers: Sequence[Words]) -> list[Claim]:
    """Returns the clauses that are weighed. Left out, where they deny nothing that is true: those
    that repeat the question, those that only name organ or modality, and conclusions."""
    named = content_words(" ".join(known.attributes))
    kept = []
    for clause in clauses:
        if not clause.words:
            continue
        fit = max(known.references, key=lambda other: support(clause, other, known.lexicon))
        supported = support(clause, fit, known.lexicon) > 0
        new = clause.words & fit.words if supported else clause.words
        # It repeats the question.
        idle = not clause.negated and new <= known.asked
        idle |= clause.words <= named or states_answer(clause, answers)
        idle |= not supported and (concludes(clause) or answers_in_words(clause, known, answers))
        denies = any(conflict(clause, other, known.lexicon) for other in known.references)
        if denies or not idle:
            kept.append(clause)
    return kept


def is_leaked(clauses: Sequence[Claim], known: KnownText, answers: Sequence[Words]) -> bool:
    """Says whether the answer, or a conclusion, comes before the first finding that is right, or
    within it."""
    for clause in clauses:
        told = all(support(clause, one, known.lexicon) < SAME for one in known.claims)
        if states_answer(clause, answers) or (told and answers_in_words(clause, known, answers)):
            return True
        if any(support(clause, one, known.lexicon) for one in known.references):
            return False
        if concludes(clause):
            return True
    return False


def answers_in_words(clause: Claim, known: KnownText, answers: Sequence[Words]) -> bool:
    """Says whether a clause is like "The lesion is on the left": nothing but the question's words
    and an answer; to a yes/no question, nothing but the question's words."""
    possible = [words for words in answers if words or is_yes_no(known.answer)]
    fits = any(words <= clause.words <= words | known.asked for words in possible)
    return bool(clause.words) and fits
