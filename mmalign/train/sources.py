"""Other models that a training reads: teachers, a preference-tuned model and its opposite, token reward models.

`train.models` names them. They read the tokens of the model that is trained, so their vocabulary must be the same; they
are loaded once and stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.errors import ModelError, TrainError
from mmalign.lm.load import Loaded, load_model
from mmalign.lm.spec import ModelSpec
from mmalign.objectives import Distributional, Objective, TokenTerm
from mmalign.train.cache.reference import adapter_off
from mmalign.train.config import TrainConfig
from mmalign.train.data.collate import PairBatch
from mmalign.train.data.given import REFERENCE, logit_sources
from mmalign.train.logprobs.head import Anchor, Head
from mmalign.train.logprobs.logps import Wanted, read


@dataclass(frozen=True)
class Source:
    """Another model, frozen, and the head by which its hidden states become distributions."""

    model: Any
    head: Head

    @classmethod
    def load(cls, name: str, config: TrainConfig, policy: Loaded) -> Source:
        """The model that `train.models` calls `name`; a folder with an adapter is one on the policy's base.

        Raises TrainError, one line, when it cannot be loaded or has other tokens.
        """
        place = config.models[name]
        try:
            loaded = load_model(_spec(place, policy))
        except ModelError as error:
            raise TrainError(f"train.models.{name}: {error}") from None
        _refuse_other_tokens(f"train.models.{name}: {place}", loaded.renderer.tokenizer, policy.renderer.tokenizer)
        model = loaded.model.eval().requires_grad_(False)
        return cls(model, Head.of(model))


@dataclass(frozen=True)
class Sources:
    """Whose whole distributions an objective reads beside the policy's: `models` by name, and the reference's, made by
    the `own` head, where the adapter, switched off, gives them. `terms` are the objective's token terms by side.
    """

    models: Mapping[str, Source]
    own: Head | None
    terms: Mapping[str, TokenTerm]

    @classmethod
    def of(cls, policy: Loaded, objective: Objective, config: TrainConfig) -> Sources:
        """Those of a run on `policy` as it was loaded; names that are a side of the pairs are none of them.

        Models of one family fill up their vocabulary differently, with tokens that no text has, so all distributions
        are cut to the smallest. Raises TrainError, one line, for a model that does not fit, and for a reference that no
        adapter gives.
        """
        names = logit_sources(objective)
        models = {name: Source.load(name, config, policy) for name in names if name in config.models}
        own = None
        if REFERENCE in names and REFERENCE not in models:
            if hasattr(policy.model, "peft_config"):
                raise TrainError(
                    f"objective {objective.name} reads whole distributions of the reference, but the model comes with "
                    f"an adapter, which is part of it; name the reference as train.models.{REFERENCE}"
                )
            own = Head.of(policy.model).frozen()
        terms = dict(objective.token_terms) if isinstance(objective, Distributional) else {}
        if models:
            sizes = {head.vocabulary for head in (Head.of(policy.model), *(one.head for one in models.values()))}
            if len(sizes) > 1:
                terms = {side: _cut(term, min(sizes)) for side, term in terms.items()}
        return cls(models, own, terms)

    @torch.no_grad()
    def anchors(self, model: Any, batch: PairBatch) -> dict[str, Anchor]:
        """What the sources say of the sides of a batch whose term names them; `model` is the policy, not wrapped."""
        found = {}
        for name in (*self.models, *([REFERENCE] if self.own is not None else [])):
            terms = self.terms
            sides = tuple(side for side in batch.sides if side in terms and name in terms[side].sources)
            if not sides:
                continue
            wanted = Wanted(logps=False, inputs=sides)
            if name in self.models:
                states, head = read(self.models[name].model, batch, wanted).inputs, self.models[name].head
            else:
                assert self.own is not None
                with adapter_off(model):
                    states, head = read(model, batch, wanted).inputs, self.own
            found[name] = Anchor(torch.cat([states[side] for side in sides]), head)
        return found

    def to(self, device: torch.device) -> None:
        """Take what does not move with the policy to `device`."""
        for source in self.models.values():
            source.model.to(device)
        if self.own is not None:
            self.own.linear.to(device)


def _cut(term: TokenTerm, size: int) -> TokenTerm:
    """The same term over the first `size` tokens of the vocabulary."""

    def function(logits: Mapping[str, Tensor], labels: Tensor) -> Mapping[str, Tensor]:
        return term.function({name: values[..., :size] for name, values in logits.items()}, labels)

    return TokenTerm(function, term.sources)


def _spec(place: str, policy: Loaded) -> ModelSpec:
    device = str(next(policy.model.parameters()).device)
    folder = Path(place).expanduser()
    about = folder / "adapter_config.json"
    if not about.is_file():
        return ModelSpec(name=place, device=device)
    base = json.loads(about.read_text(encoding="utf-8")).get("base_model_name_or_path")
    return ModelSpec(name=base or policy.name, adapter=place, device=device)


def _refuse_other_tokens(where: str, theirs: Any, ours: Any) -> None:
    """Raises TrainError unless both tokenizers have the same tokens with the same numbers."""
    found, expected = theirs.get_vocab(), ours.get_vocab()
    if found == expected:
        return
    other = min(token for token in {*found, *expected} if found.get(token) != expected.get(token))
    raise TrainError(
        f"{where}: its tokens are not those of the model that is trained ({len(found)} and {len(expected)}; {other!r} "
        f"is number {found.get(other)} and {expected.get(other)}); take models with the same tokenizer"
    )
