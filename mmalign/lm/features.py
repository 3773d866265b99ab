"""How many features a model will compute for encoded media, from its config alone.

Every feature takes the place of one placeholder token. The counts follow transformers' models, which compare them only
when they run; here they are known before any weights are loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

Inputs = Mapping[str, Any]


def num_features(config: Any, inputs: Inputs) -> int | None:
    """Features of all media in `inputs` (a processor's tensors); None for a kind of model that is not known here."""
    grids = [inputs[name] for name in ("image_grid_thw", "video_grid_thw") if name in inputs]
    if grids:
        merge = getattr(config.vision_config, "spatial_merge_size", None)
        return None if merge is None else sum(int(grid.prod(-1).sum()) for grid in grids) // merge**2
    if "pixel_values" not in inputs and "pixel_values_videos" not in inputs:
        return 0
    count = _COUNTS.get(config.model_type)
    return None if count is None else count(config, inputs)


def placeholder_ids(config: Any) -> list[int]:
    """Ids of the tokens whose embeddings are replaced by features."""
    ids = {getattr(config, f"{kind}_token_id", None) for kind in ("image", "video")}
    return sorted(token for token in ids if isinstance(token, int))


def _side(config: Any) -> int:
    """Patches along one side of what the vision tower sees."""
    size, patch = (value if isinstance(value, int) else value[0] for value in _sizes(config))
    return int(size // patch)


def _sizes(config: Any) -> tuple[Any, Any]:
    return config.vision_config.image_size, config.vision_config.patch_size


def _tower(config: Any) -> int:
    """Features of one picture as they leave a CLIP-like tower."""
    has_class_token = config.vision_config.model_type.startswith("clip")
    return _side(config) ** 2 + int(has_class_token) - int(config.vision_feature_select_strategy == "default")


def _llava(config: Any, inputs: Inputs) -> int:
    return len(inputs["pixel_values"]) * _tower(config)


def _llava_next_video(config: Any, inputs: Inputs) -> int:
    from transformers.models.llava_next_video import modeling_llava_next_video as modeling

    total = 0
    if "pixel_values" in inputs:
        parts = [_num_parts(config, modeling, size) for size in inputs["image_sizes"]]
        _, lengths = modeling.LlavaNextVideoModel.pack_image_features(
            SimpleNamespace(config=config),
            [torch.zeros(num, _tower(config), 1) for num in parts],
            inputs["image_sizes"],
            config.vision_feature_select_strategy,
            image_newline=torch.zeros(1),
        )
        total += int(lengths.sum())
    if "pixel_values_videos" in inputs:
        videos, frames = inputs["pixel_values_videos"].shape[:2]
        total += int(videos * frames * (_side(config) // config.spatial_pool_stride) ** 2)
    return total


def _llava_onevision(config: Any, inputs: Inputs) -> int:
    from transformers.models.llava_onevision import modeling_llava_onevision as modeling

    total = 0
    if "pixel_values" in inputs:
        together = [int(count) for count in inputs["batch_num_images"]]
        alone = [count == 1 for count in together for _ in range(count)]
        sizes = inputs["image_sizes"]
        parts = [_num_parts(config, modeling, size) if one else 1 for size, one in zip(sizes, alone, strict=True)]
        _, lengths = modeling.LlavaOnevisionModel.pack_image_features(
            SimpleNamespace(config=config),
            [torch.zeros(num, _tower(config), 1) for num in parts],
            sizes,
            image_newline=torch.zeros(1),
            vision_aspect_ratio=config.vision_aspect_ratio,
        )
        total += int(lengths.sum())
    if "pixel_values_videos" in inputs:
        videos, frames = inputs["pixel_values_videos"].shape[:2]
        total += int(videos * (frames * math.ceil(_side(config) / 2) ** 2 + 1))
    return total


def _num_parts(config: Any, modeling: Any, size: Tensor) -> int:
    parts = modeling.image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)
    return int(parts)


def _smolvlm(config: Any, inputs: Inputs) -> int:
    shown = (inputs["pixel_values"] != 0).flatten(2).any(-1).sum()  # the model takes pictures of zeros for padding
    return int(shown) * int((_side(config) // config.scale_factor) ** 2)


def _internvl(config: Any, inputs: Inputs) -> int:
    return len(inputs["pixel_values"]) * int(_side(config) * config.downsample_ratio) ** 2


_COUNTS: dict[str, Callable[[Any, Inputs], int]] = {
    "llava": _llava,
    "llava_next_video": _llava_next_video,
    "llava_onevision": _llava_onevision,
    "smolvlm": _smolvlm,
    "internvl": _internvl,
}
