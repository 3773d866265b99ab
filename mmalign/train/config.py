"""What a training run can be told. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Schedule = Literal["cosine", "linear", "constant"]
Arrangement = Literal["as_made", "curry", "easy_to_hard", "mpo_easy", "mpo_hard", "temporal", "reward_augmented"]


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters.

    Args:
        rank: Rank of every adapter.
        alpha: Scale; the update is multiplied by alpha / rank.
        dropout: Dropout on the adapter's input. The model's own dropout is always off.
        targets: Last names of the linear layers that get an adapter, such as q_proj. Empty means all linear layers of
            the language model except its head (and, without `freeze_vision`, those of tower and projector).
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError that names the key, its value and what would be right."""
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout is {self.dropout}; it must be 0 or more and less than 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How pairs are trained on.

    Args:
        epochs: Passes over the pairs.
        learning_rate: Highest rate of the schedule.
        batch_size: Pairs per optimizer step, over all ranks.
        micro_batch_size: Pairs per forward on one rank; changes memory and speed, not the result. Objectives that
            compare all pairs of a step with each other (need `whole_step`) take `batch_size` of them, on one rank.
        schedule: How the rate falls after the warm-up: cosine or linear to 0, or constant.
        warmup_ratio: Share of the steps in which the rate rises from 0.
        weight_decay: AdamW's, on matrices only.
        max_grad_norm: Gradients are scaled down to this norm; 0 leaves them alone.
        seed: Order of the pairs, first adapter weights, adapter dropout.
        max_length: Most tokens of a prompt (media included) with one answer; none means no limit. Nothing is ever cut.
        overlong: What to do with a pair over `max_length`: drop it (counted), or stop with an error.
        arrange: What to make of the pairs first: nothing (as_made); stages from the best answer against the worst to
            the best against better ones (curry), or by the judge's gap (easy_to_hard); the easy or the hard half by
            that gap (mpo_easy, mpo_hard); pairs of the answers of three models (temporal); or two of each pair, under
            the goals of its two scores (reward_augmented).
        num_stages: How many stages easy_to_hard makes.
        stages: Pairs of all stages together (mixed), or one stage after the other in ascending order (renew): each
            starts from what the one before gave, with a new adapter and optimizer, and with that start as reference;
            one without a pair to train on is skipped.
        sft_after_stages: With renew, end with a stage of plain likelihood on all chosen texts.
        lora: Adapter settings; null trains all weights.
        freeze_vision: Leave vision tower and projector as they are.
        precompute_reference: Compute the reference's log-probs once, before training, and keep them on disk. Without
            it they come from the same weights with the adapter off, at every step (LoRA only).
        reference_cache: Folder that keeps the reference's log-probs across runs and rounds, found again pair by pair by
            weights, processor, media and texts; runs and ranks may share it. Null keeps them in the run's own folder.
        shared_prefix: Compute prompt and media once for all answers to them (auto), or once for each (off). With auto
            a batch is computed both ways before the run, and a model that cannot share says so and does not.
        vision_once: Compute features of pictures and clips once for policy, reference and all epochs where the vision
            tower is frozen (auto), or in every forward (off). With auto a batch is computed both ways before the run,
            and a model that gives other numbers says so and does not.
        feature_memory_gb: Memory on each rank, in 10^9 bytes, for features that are kept until the run ends.
        feature_cache: Folder that keeps features across epochs, runs and rounds, found again by the content of media
            and the weights of the tower; runs and ranks may share it. None keeps them in memory only.
        feature_cache_gb: About how large that folder may become, in 10^9 bytes; features that were not used for longest
            leave first.
        gradient_checkpointing: Compute activations twice to save memory.
        precision: fp32 turns all weights to float32; bf16 does so with those that are trained, and runs the forward in
            bfloat16 by autocast.
        checkpoint_every_steps: Optimizer steps between checkpoints; 0 writes none, but where training is interrupted.
        keep_checkpoints: How many of the newest checkpoints stay on disk.
        models: Other models that an objective reads, by the names that it asks for (teacher, dpo, ...): names or
            folders of models, or folders of adapters on the base of the model that is trained. They must have its
            tokens. A token reward NAME is the log-prob under model NAME less that under NAME_reference, or the run's
            reference.
        report_to: Experiment trackers that accelerate knows, such as tensorboard, beside `metrics.jsonl`.
        threads: CPU threads for torch, from the start of the run; 0 leaves torch's default.
    """

    epochs: int = 1
    learning_rate: float = 5e-6
    batch_size: int = 8
    micro_batch_size: int = 2
    schedule: Schedule = "cosine"
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0
    max_length: int | None = 2048
    overlong: Literal["drop", "error"] = "drop"
    arrange: Arrangement = "as_made"
    num_stages: int = 3
    stages: Literal["mixed", "renew"] = "mixed"
    sft_after_stages: bool = False
    lora: LoraConfig | None = field(default_factory=LoraConfig)
    freeze_vision: bool = True
    precompute_reference: bool = True
    reference_cache: Path | None = None
    shared_prefix: Literal["auto", "off"] = "auto"
    vision_once: Literal["auto", "off"] = "auto"
    feature_memory_gb: float = 2.0
    feature_cache: Path | None = None
    feature_cache_gb: float = 20.0
    gradient_checkpointing: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_every_steps: int = 50
    keep_checkpoints: int = 2
    models: dict[str, str] = field(default_factory=dict)
    report_to: tuple[str, ...] = ()
    threads: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError that names the key, its value and what would be right."""
        at_least = {
            "epochs": 1,
            "batch_size": 1,
            "micro_batch_size": 1,
            "weight_decay": 0,
            "max_grad_norm": 0,
            "num_stages": 1,
            "checkpoint_every_steps": 0,
            "keep_checkpoints": 1,
            "feature_memory_gb": 0,
            "feature_cache_gb": 0,
            "threads": 0,
        }
        for key, least in at_least.items():
            if not getattr(self, key) >= least:
                raise ValueError(f"{key} is {getattr(self, key)}; it must be {least} or more")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be more than 0")
        if not 0 <= self.warmup_ratio <= 1:
            raise ValueError(f"warmup_ratio is {self.warmup_ratio}; it must be between 0 and 1")
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"max_length is {self.max_length}; it must be 2 or more, or null for no limit")
        if self.lora is not None and self.lora.rank < 1:
            raise ValueError(f"lora.rank is {self.lora.rank}; it must be 1 or more, or lora null")
        if self.sft_after_stages and self.stages != "renew":
            raise ValueError("sft_after_stages is true, but stages is mixed; set stages to renew")
        if self.arrange in ("curry", "easy_to_hard") and self.stages != "renew":
            raise ValueError(f"arrange is {self.arrange}, but stages is mixed; set stages to renew")
        if self.lora is None and not self.precompute_reference:
            raise ValueError(
                "precompute_reference is false; without an adapter to switch off there is no other reference: "
                "set it to true, or set lora"
            )


#: Keys that change where or how fast a run goes, never what comes out; a continued run may differ in them.
FREE_KEYS = (
    "checkpoint_every_steps",
    "keep_checkpoints",
    "report_to",
    "threads",
    "micro_batch_size",
    "shared_prefix",
    "gradient_checkpointing",
    "reference_cache",
    "vision_once",
    "feature_memory_gb",
    "feature_cache",
    "feature_cache_gb",
)
