"""The same losses, and the same gradients, as TRL's own code on random log-probs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmalign.objectives import SFT, LossInputs, Objective, RobustDPO, Sum
from mmalign.objectives.dpo import DPO
from mmalign.objectives.free import CPO, ORPO, TPO, LengthTPO, SimPO
from mmalign.objectives.pairwise import (
    AOT,
    BCO,
    EXO,
    FDPO,
    IPO,
    KTO,
    NCA,
    APODown,
    APOZero,
    DiscoPOP,
    HardSPPO,
    Hinge,
    LengthDPO,
    NormalisedDPO,
    UnpairedAOT,
)
from mmalign.objectives.tokens import WPO
from tests.objectives.fixtures import given, random_pairs

#: TRL warns of its own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")

SIDES = ("chosen", "rejected")


class Accelerator:
    """What a loss asks of accelerate in one process."""

    device = torch.device("cpu")

    def gather(self, values: Tensor) -> Tensor:
        return values

    gather_for_metrics = gather


class Model(torch.nn.Module):
    """What a loss asks of the model itself."""

    is_gradient_checkpointing = False


def stacked(inputs: LossInputs, pick: Callable[[Any], Tensor], sides: tuple[str, ...] = SIDES) -> Tensor:
    return torch.cat([pick(inputs.side(name)) for name in sides])


def trl_loss(inputs: LossInputs, squares: Tensor | None = None, **settings: Any) -> Tensor:
    """`DPOTrainer._compute_loss` on a model that gives these log-probs: TRL's loss, with gradient."""
    from trl import DPOTrainer

    logps, mask = (stacked(inputs, pick) for pick in (lambda one: one.token_logps, lambda one: one.mask))
    logps = logps * mask  # as the model gives them: padding is 0 and learns nothing
    completion = torch.nn.functional.pad(mask, (1, 0))
    numbers = torch.zeros_like(logps)

    def forward(values: Tensor) -> Callable[..., Any]:
        def run(**_: Any) -> Any:
            return SimpleNamespace(
                log_probs=values, entropy=numbers, mean_logits=numbers, is_top1=mask, log_sum_sq_probs=squares
            )

        return run

    loss_type = settings.pop("loss_type", "sigmoid")
    types = [loss_type] if isinstance(loss_type, str) else loss_type
    trainer: Any = SimpleNamespace(
        accelerator=Accelerator(),
        model=Model(),
        ref_model=forward(stacked(inputs, lambda one: one.reference)),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=0.05),
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        beta=0.1,
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        f_alpha_divergence_coef=0.5,
        label_smoothing=0.0,
        loss_types=types,
        loss_weights=[1.0] * len(types),
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    vars(trainer).update(settings)
    batch = {"input_ids": completion.long(), "attention_mask": completion.long(), "completion_mask": completion.long()}
    loss: Tensor = DPOTrainer._compute_loss(trainer, forward(logps), batch, False)
    return loss


def step_loss(objective: Objective, inputs: LossInputs) -> Tensor:
    """Our loss of a step that holds these pairs only."""
    output = objective(inputs)
    loss = output.loss.mean()
    for name, values in output.pooled.items():
        loss = loss + values.sum() / inputs.side(name).mask.sum()
    return loss


def sure(seed: int) -> LossInputs:
    """Random pairs whose labels are certain, as all of TRL's are."""
    inputs = random_pairs(seed, size=6)
    single = {
        name: replace(
            one,
            token_logps=one.token_logps.detach().float().requires_grad_(),
            reference_token_logps=one.reference.float(),
        )
        for name, one in inputs.sides.items()
    }
    return replace(inputs, sides=single, p=torch.ones(6))


def same(ours: Tensor, theirs: Tensor, inputs: LossInputs) -> None:
    leaves = [one.token_logps for one in inputs.sides.values()]
    found = torch.autograd.grad(ours, leaves, allow_unused=True)
    expected = torch.autograd.grad(theirs, leaves, allow_unused=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for name, one, other in zip(inputs.sides, found, expected, strict=True):
        zero = torch.zeros_like(inputs.side(name).token_logps)
        torch.testing.assert_close(
            zero if one is None else one, zero if other is None else other, rtol=1e-4, atol=1e-6, msg=name
        )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        (DPO(), {}),
        (DPO(beta=0.7), {"beta": 0.7}),
        (Hinge(), {"loss_type": "hinge"}),
        (IPO(), {"loss_type": "ipo"}),
        (EXO(), {"loss_type": "exo_pair", "label_smoothing": 1e-3}),
        (NCA(), {"loss_type": "nca_pair"}),
        (RobustDPO(), {"loss_type": "robust", "label_smoothing": 0.1}),
        (BCO(), {"loss_type": "bco_pair"}),
        (HardSPPO(), {"loss_type": "sppo_hard"}),
        (AOT(label_smoothing=0.2), {"loss_type": "aot", "label_smoothing": 0.2}),
        (UnpairedAOT(label_smoothing=0.2), {"loss_type": "aot_unpaired", "label_smoothing": 0.2}),
        (APOZero(beta=0.5), {"loss_type": "apo_zero", "beta": 0.5}),
        (APODown(beta=0.5), {"loss_type": "apo_down", "beta": 0.5}),
        (DiscoPOP(), {"loss_type": "discopop"}),
        (SFT(), {"loss_type": "sft"}),
        (NormalisedDPO(), {"loss_type": "sigmoid_norm"}),
        (FDPO(divergence="forward_kl"), {"f_divergence_type": "forward_kl"}),
        (FDPO(divergence="js"), {"f_divergence_type": "js_divergence"}),
        (FDPO(divergence="alpha"), {"f_divergence_type": "alpha_divergence"}),
        (LengthDPO(tail_weight=0.3), {"ld_alpha": 0.3}),
        (
            DPO(label_smoothing=0.1),
            {"loss_type": ["sigmoid", "robust"], "loss_weights": [1.8, -0.8], "label_smoothing": 0.1},
        ),
        (
            Sum(terms=({"name": "dpo", "weight": 0.8}, {"name": "bco_pair", "weight": 0.2}, {"name": "sft"})),
            {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
        ),
    ],
    ids=lambda value: str(value.get("loss_type", value)) if isinstance(value, dict) else value.name,
)
def test_losses_of_dpo_trainer(objective: Objective, settings: dict[str, Any], seed: int) -> None:
    inputs = sure(seed)
    same(step_loss(objective, inputs), trl_loss(inputs, **settings), inputs)


def test_trl_ignores_label_smoothing_in_its_plain_loss() -> None:
    """Ours does not; if this fails TRL has changed."""
    inputs = sure(0)
    plain, smoothed = trl_loss(inputs), trl_loss(inputs, label_smoothing=0.3)
    assert float(plain) == float(smoothed)
    assert float(step_loss(DPO(label_smoothing=0.3), inputs)) != pytest.approx(float(plain), abs=1e-4)


def test_weighting_of_wpo() -> None:
    inputs = sure(1)
    squares = -torch.rand(12, 7, generator=torch.Generator().manual_seed(1)) * 2
    both = {
        name: replace(one, terms={"log_agreement": part})
        for (name, one), part in zip(inputs.sides.items(), squares.chunk(2), strict=True)
    }
    weighted = replace(inputs, sides=both)
    theirs = trl_loss(inputs, squares, use_weighting=True)
    same(WPO()(weighted).loss.mean(), theirs, inputs)


@pytest.mark.parametrize(
    ("objective", "kind", "settings"),
    [
        (TPO(beta=0.1), "sigmoid", {"tpo_alpha": 1.0}),
        (TPO(beta=0.1, label_smoothing=0.2, sft_weight=0.4), "sigmoid", {"tpo_alpha": 0.4, "label_smoothing": 0.2}),
        (LengthTPO(beta=0.5), "tpo-l", {"tpo_alpha": 1.0, "tpo_l_gamma": 0.5, "beta": 0.5}),
    ],
    ids=("tpo", "tpo smoothed", "tpo-l"),
)
def test_losses_of_tpo_trainer(objective: Objective, kind: str, settings: dict[str, Any]) -> None:
    from trl.experimental.tpo import TPOTrainer

    generator = torch.Generator().manual_seed(3)
    order = ("chosen", "rejected", "gold")
    logits = torch.randn(9, 6, 11, generator=generator, requires_grad=True)
    ids = torch.randint(0, 11, (9, 6), generator=generator)
    mask = torch.arange(6) >= torch.randint(1, 5, (9, 1), generator=generator)
    logps = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    rows = [(part * seen, seen) for part, seen in zip(logps.chunk(3), mask[:, 1:].chunk(3), strict=True)]
    sides = {
        name: replace(sure(0).chosen, token_logps=values, mask=seen, reference_token_logps=None, changed=None)
        for name, (values, seen) in zip(order, rows, strict=True)
    }
    inputs = LossInputs(sides=sides, p=torch.ones(3))
    trainer: Any = SimpleNamespace(
        accelerator=Accelerator(),
        model=Model(),
        beta=0.1,
        label_smoothing=0.0,
        loss_type=kind,
        tpo_l_gamma=0.5,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    vars(trainer).update(settings)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": mask.long()}
    theirs = TPOTrainer._compute_loss(trainer, lambda **_: SimpleNamespace(logits=logits), batch, False)
    ours = step_loss(objective, inputs)
    torch.testing.assert_close(ours, theirs)
    found, expected = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("objective", "kind", "gamma", "smoothing"),
    [
        (CPO(sft_weight=0.0), "sigmoid", 0.0, 0.0),
        (CPO(sft_weight=0.0, label_smoothing=0.1), "sigmoid", 0.0, 0.1),
        (SimPO(), "simpo", 0.5, 0.0),
    ],
)
def test_losses_of_cpo_trainer(objective: CPO, kind: str, gamma: float, smoothing: float) -> None:
    from trl.experimental.cpo import CPOTrainer

    inputs = sure(2)
    trainer: Any = SimpleNamespace(
        alpha=0.0,
        accelerator=Accelerator(),
        loss_type=kind,
        simpo_gamma=gamma,
        beta=objective.beta,
        label_smoothing=smoothing,
    )
    scores = [objective.score(inputs.side(name)) for name in SIDES]
    theirs = CPOTrainer.cpo_loss(trainer, *scores)[0]
    torch.testing.assert_close(objective(inputs).loss, theirs)
    same(objective(inputs).loss.mean(), theirs.mean(), inputs)


def test_loss_of_orpo_trainer() -> None:
    from trl.experimental.orpo import ORPOTrainer

    inputs, objective = sure(3), ORPO()
    trainer: Any = SimpleNamespace(beta=objective.beta, accelerator=Accelerator())
    scores = [objective.score(inputs.side(name)) for name in SIDES]
    theirs = -ORPOTrainer.odds_ratio_loss(trainer, *scores)[0]
    same(objective(inputs).loss.mean(), theirs.mean(), inputs)


def test_loss_of_kto_trainer() -> None:
    """TRL has one row per completion: a chosen and a rejected one are two, so its mean is ours."""
    from trl import KTOTrainer

    inputs = sure(4)
    other = sure(5).chosen
    inputs = given(inputs, mismatched=replace(other, token_logps=other.token_logps.detach() + 0.5))
    logps, mask = (stacked(inputs, pick) for pick in (lambda one: one.token_logps, lambda one: one.mask))
    logps = logps * mask
    completion = torch.nn.functional.pad(mask, (1, 0)).long()
    numbers = torch.zeros_like(logps)
    mismatched = inputs.side("mismatched")

    def forward(values: Tensor) -> Callable[..., Any]:
        outputs = SimpleNamespace(log_probs=values, entropy=numbers, mean_logits=numbers, is_top1=mask)
        return lambda **_: outputs

    policy, reference = forward(logps), forward(stacked(inputs, lambda one: one.reference))
    sums = {
        id(policy): (mismatched.token_logps * mismatched.mask).sum(-1),
        id(reference): (mismatched.reference * mismatched.mask).sum(-1),
    }
    trainer: Any = SimpleNamespace(
        accelerator=Accelerator(),
        model=Model(),
        ref_model=reference,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        calculate_KL=True,
        loss_type="kto",
        beta=0.1,
        desirable_weight=1.0,
        undesirable_weight=1.0,
        _compute_kl_logps=lambda model, batch: sums[id(model)],
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    batch = {
        "input_ids": completion,
        "attention_mask": completion,
        "completion_mask": completion,
        "label": torch.arange(12) < 6,
    }
    theirs = KTOTrainer._compute_loss(trainer, policy, batch, False)
    assert KTO()(inputs).metrics["kl"][0] > 0
    pair = replace(inputs, sides={name: inputs.side(name) for name in SIDES})
    same(KTO()(inputs).loss.mean(), theirs, pair)
