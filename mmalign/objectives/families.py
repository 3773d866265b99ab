"""The objectives sorted by what they are alike in, for lists that a person reads."""

from __future__ import annotations

from typing import Final

_NAMES = {
    "DPO": "dpo cdpo rdpo stic_dpo mask_dpo f_dpo ld_dpo wpo sail rrpo ranked_dpo",
    "Other links on two log-ratios": (
        "hinge ipo exo_pair nca_pair bco_pair sppo_hard apo_zero apo_down discopop sigmoid_norm aot aot_unpaired kto"
    ),
    "Without a reference": "cpo simpo orpo tpo tpo_l sft poft",
    "Labels that may be wrong": "lcpo selfie osp cream upo dno",
    "Regressions": "sppo irepo reward_regression srpo",
    "One more answer or context": "selm d2o mdpo rationale_dpo rationale_orpo mapl cut",
    "Other models' log-probs, reward gaps": "infifpo mm_dpo",
    "Whole distributions": "align_distil dckd adpa next_quill",
    "Lists of answers": "lipo pro knowpat rrhf trpa sami steerlm",
    "Policy gradients": "grpo grpo_s sar spo_self_play score p3o",
    "What the model says itself": "scir spo_degree",
    "Reward models": "bradley_terry eurus strength_rm crm more pal armorm helpsteer regret",
    "Schedules, with DPO as their loss": "curry_dpo mpo_two_stage temporal_dpo reward_augmented_dpo",
    "Sums": "sum mpo",
}

#: Titles, and the names below them; every objective of the package stands under exactly one.
FAMILIES: Final[dict[str, tuple[str, ...]]] = {title: tuple(names.split()) for title, names in _NAMES.items()}
