"""The consistency judge: long answers of one prompt, checked by the same model's short yes/no answers.

Every question is asked once, in a conversation of its own: picture or clip, question, "answer yes or no". The long
answer is never in sight, so the model looks at the media instead of agreeing with itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmalign.judge.claims import Claim, ClaimExtractor, existence
from mmalign.judge.verdict import Score, Verdict, reason, score, verdict
from mmalign.lm.bound import SampleLM
from mmalign.lm.protocol import YES_NO
from mmalign.text.negation import negated
from mmalign.text.objects import Vocabulary
from mmalign.text.prompts import LIST_OBJECTS, worded
from mmalign.types import Choice, Judgement, Sample, Sampling


@dataclass(frozen=True, slots=True)
class Assessment:
    """One answer as the judge sees it.

    `named` are the known things in it, `missing` those that the model lists by itself and the answer leaves out.
    """

    verdicts: tuple[Verdict, ...]
    missing: tuple[str, ...]
    score: float | None
    named: frozenset[str]

    @property
    def num_consistent(self) -> int:
        return sum(given.label == "consistent" for given in self.verdicts)

    @property
    def denied(self) -> tuple[tuple[int, int], ...]:
        """Character ranges of the claims that the model does not stand by, in reading order."""
        spans = {(v.claim.start, v.claim.end) for v in self.verdicts if v.label == "inconsistent"}
        return tuple(sorted(spans))

    def judgement(self, side: str) -> Judgement:
        """The row for the pair file, with every raw probability."""
        raw = {
            "side": side,
            "claims": [given.to_row() for given in self.verdicts],
            "missing": list(self.missing),
        }
        return Judgement("consistency", self.score, reason(self.verdicts, self.missing), raw)


async def ask(sample: Sample, claims: Iterable[Claim], lm: SampleLM) -> dict[str, Choice]:
    """Ask the question of every claim about the sample's media, each distinct question once and alone."""
    questions = list(dict.fromkeys(claim.question for claim in claims))
    choices = await asyncio.gather(*(lm.choose(sample.ask(question), YES_NO) for question in questions))
    return dict(zip(questions, choices, strict=True))


async def own_list(sample: Sample, vocabulary: Vocabulary, lm: SampleLM) -> tuple[str, ...]:
    """The known things in the model's own short list of what it sees."""
    answer = await lm.generate(sample.ask(worded(LIST_OBJECTS, sample.media)), Sampling(max_new_tokens=128))
    named = (m.name for m in vocabulary.mentions(answer.text) if not negated(answer.text, m.start, m.end))
    return tuple(dict.fromkeys(named))


async def sees(sample: Sample, vocabulary: Vocabulary, lm: SampleLM, name: str) -> bool:
    """Whether the model says that an object is in the picture or clip."""
    claim = existence(name, vocabulary, sample.media)
    return (await ask(sample, [claim], lm))[claim.question].probabilities[0] > 0.5


@dataclass(frozen=True, slots=True)
class ConsistencyJudge:
    """Scores all long answers of one prompt together.

    With a `miss_penalty`, a thing costs that much when the model lists it when asked what is there, does not deny it
    when asked for it, and the answer leaves it out; short answers then cannot win by saying nothing.
    """

    extractor: ClaimExtractor
    vocabulary: Vocabulary
    kind: Score = "count"
    band: float = 0.1
    min_mass: float = 0.1
    miss_penalty: float = 1.0

    async def assess(self, sample: Sample, texts: Sequence[str], lm: SampleLM) -> list[Assessment]:
        """One assessment per text, in order."""
        per_text = await asyncio.gather(*(self.extractor.claims(text, lm, sample.media) for text in texts))
        listed = await own_list(sample, self.vocabulary, lm) if self.miss_penalty else ()
        wanted = [existence(name, self.vocabulary, sample.media) for name in listed]
        choices = await ask(sample, [claim for claims in per_text for claim in claims] + wanted, lm)

        def judged(claim: Claim) -> Verdict:
            return verdict(claim, choices[claim.question], band=self.band, min_mass=self.min_mass)

        seen = [claim.name for claim in wanted if judged(claim).label in ("consistent", "ignored")]
        assessments = []
        for text, claims in zip(texts, per_text, strict=True):
            named = frozenset(mention.name for mention in self.vocabulary.mentions(text))
            missing = tuple(name for name in seen if name not in named)
            verdicts = tuple(judged(claim) for claim in claims)
            value = score(verdicts, self.kind, missing=len(missing), miss_penalty=self.miss_penalty)
            assessments.append(Assessment(verdicts, missing, value, named))
        return assessments

    async def says_yes_to_absent(self, sample: Sample, names: Sequence[str], lm: SampleLM) -> bool:
        """Whether the model affirms every one of these things, which nothing suggests: then its yes means little."""
        claims = [existence(name, self.vocabulary, sample.media) for name in names]
        choices = await ask(sample, claims, lm)
        given = [verdict(claim, choices[claim.question], band=0.0, min_mass=self.min_mass) for claim in claims]
        return bool(given) and all(each.label == "consistent" for each in given)
