"""APASI (arXiv 2509.11287, EMNLP 2025): a model injects hallucinations into its own description.

Sentences, late ones rather than early ones, are replaced by sentences that the same model writes without the picture,
each forced to begin with a thing that often comes along with what is described but that the description does not name.
The untouched description is chosen. Departures from the paper: docs/methods/apasi.md.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict
from functools import partial

from mmalign.errors import NoPair
from mmalign.inject.cooccurrence import Cooccurrence
from mmalign.inject.guides import OPENERS, Guides
from mmalign.inject.language_prior import LanguagePrior, draw_positions, num_injected
from mmalign.judge.consistency import sees
from mmalign.lm.bound import SampleLM
from mmalign.methods import check_least, method
from mmalign.text.negation import negated
from mmalign.text.objects import Vocabulary
from mmalign.text.prompts import DETAIL, worded
from mmalign.text.sentences import Sentence, sentences
from mmalign.types import Completion, Pair, Row, Sample, Sampling


@method("apasi", media=("image", "video"), paper="EMNLP 2025, arXiv 2509.11287")
class APASI:
    """The model's description against the same one with sentences that it wrote without seeing the picture.

    Args:
        injection_rate: Share of the sentences that are replaced.
        min_injected: Fewest sentences to replace; shorter descriptions give no pair.
        skip_sentences: Sentences at the beginning that are never replaced.
        late: Prefer late sentences, where models hallucinate most.
        top_k: Most frequent companions that a guide object is drawn from.
        check_absent: Ask the model, with the picture, whether the guide object is there, and take another if it is.
        prompts: Requests to draw from without a prompt in the data. For clips the default ones say video, yours stay.
        max_new_tokens: Token limit of the description; one that reaches it gives no pair.
        injected_tokens: Token limit of an injected sentence.
        repetition_penalty: Of injected sentences.
        min_content_words: Words an injected sentence must add to its beginning that are more than grammar.
        attempts: Beginnings tried for one sentence, and objects tried with `check_absent`.
        openers: Beginnings of injected sentences; {a} is the object with article, {plural} several of it.
        vocabulary: "objects", "drawn" (the embedded model's world), or a word list like mmalign/text/objects.txt.
    """

    injection_rate: float = 0.2
    min_injected: int = 1
    skip_sentences: int = 1
    late: bool = True
    top_k: int = 10
    check_absent: bool = False
    prompts: tuple[str, ...] = DETAIL
    max_new_tokens: int = 1024
    injected_tokens: int = 64
    repetition_penalty: float = 1.1
    min_content_words: int = 2
    attempts: int = 3
    openers: tuple[str, ...] = OPENERS
    vocabulary: str = "objects"

    def __post_init__(self) -> None:
        if not 0 < self.injection_rate <= 1:
            raise ValueError(
                f"injection_rate: {self.injection_rate} replaces nothing or too much; use above 0, at most 1"
            )
        if self.min_injected < 1 or self.attempts < 1:
            raise ValueError("min_injected and attempts: must be at least 1")
        check_least(self, max_new_tokens=1, injected_tokens=1)
        _ = self.injection
        Vocabulary.load(self.vocabulary)  # a wrong list is refused before the run starts
        for opener in self.openers:
            if ("{a}" in opener) == ("{plural}" in opener):
                raise ValueError(f"openers: {opener!r} must hold either {{a}} or {{plural}}")

    @property
    def words(self) -> Vocabulary:
        return Vocabulary.load(self.vocabulary)

    async def survey(self, sample: Sample, lm: SampleLM, rng: random.Random) -> Row:
        """First pass: the description and the things it names."""
        prompt = sample.prompt or worded(rng.choice(self.prompts), sample.media)
        written = await lm.generate(sample.ask(prompt), Sampling(max_new_tokens=self.max_new_tokens))
        named = (m.name for m in self.words.mentions(written.text) if not negated(written.text, m.start, m.end))
        return {"prompt": prompt, "objects": sorted(set(named)), **asdict(written)}

    def learn(self, surveys: Iterable[Row]) -> Cooccurrence:
        """Which things come together, over all descriptions."""
        return Cooccurrence.learn(row["objects"] for row in surveys)

    async def pairs(
        self, sample: Sample, lm: SampleLM, rng: random.Random, survey: Row, known: Cooccurrence
    ) -> AsyncIterator[Pair]:
        """Second pass: one pair per description that is long enough."""
        chosen = Completion(**{key: survey[key] for key in ("text", "num_tokens", "finish", "seed")})
        if chosen.finish == "length":
            raise NoPair("the description was cut off at the token limit")
        pieces = sentences(chosen.text)
        count = num_injected(len(pieces), self.injection_rate)
        if not self.min_injected <= count <= len(pieces) - self.skip_sentences:
            raise NoPair("the description has too few sentences")
        indices = draw_positions(len(pieces), count, self.skip_sentences, rng, ramp=self.late)
        prior = LanguagePrior(self.injection, self.min_content_words, self.attempts)
        chat = sample.ask(survey["prompt"])
        guides = self.guides(sample, pieces, indices, known, lm, rng)
        made = await prior.inject(chat, pieces, indices, guides.draw, lm.generate)
        if made.text == chosen.text:
            raise NoPair("the injected sentences equal the replaced ones")
        yield Pair(
            chat,
            chosen,
            Completion(made.text),
            source="language_prior",
            chosen_spans=made.before,
            rejected_spans=made.after,
            provenance={
                "replaced": list(made.indices),
                "guides": [{"object": used.name, "phrase": used.phrase} for used in made.guides],
                "injection_rate": self.injection_rate,
                "seeds": [chosen.seed],
            },
        )

    def guides(
        self,
        sample: Sample,
        pieces: list[Sentence],
        indices: list[int],
        known: Cooccurrence,
        lm: SampleLM,
        rng: random.Random,
    ) -> Guides:
        named = [{mention.name for mention in self.words.mentions(piece.text)} for piece in pieces]
        kept = set().union(*(names for index, names in enumerate(named) if index not in indices))
        seen = partial(sees, sample, self.words, lm) if self.check_absent else None
        taken = set().union(*named)
        return Guides(known, self.words, kept, taken, rng, self.openers, self.top_k, self.attempts, seen)

    @property
    def injection(self) -> Sampling:
        return Sampling(repetition_penalty=self.repetition_penalty, max_new_tokens=self.injected_tokens, stop=(".",))
