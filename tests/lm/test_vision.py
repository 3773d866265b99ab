"""Features apart from the forward that reads them: what the tower makes, and what the language model then gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from mmalign.lm.features import placeholder_ids
from mmalign.lm.load import Loaded
from mmalign.lm.vision import NO_FEATURES, Features, see, takes_features, without_pixels
from mmalign.types import Chat, Media, Message
from tests.models import READING, clip, picture, shared

SEEING = (
    "llava",
    "qwen2-vl",
    "qwen2.5-vl",
    "qwen3-vl",
    "llava-onevision",
    "llava-next-video",
    "smolvlm",
    "internvl",
    "idefics3",
    "gemma3",
    "tiny",
)
#: Chats of these would need their clips frame by frame.
MEDIA: dict[str, list[Media]] = {
    "a picture": [picture(1)],
    "pictures": [picture(1), picture(2, size=(48, 32)), picture(3, size=(32, 64))],
    "a clip": [clip(1, frames=4)],
    "all": [picture(1), clip(2, frames=4), picture(3, size=(48, 32))],
}


def encoded(loaded: Loaded, media: list[Media]) -> dict[str, Tensor]:
    chat = Chat((Message("user", (*media, "Describe it.")),))
    return dict(loaded.renderer.encode([loaded.renderer.prompt(chat)], [media]))


@pytest.mark.parametrize("name", SEEING)
def test_the_forward_reads_features_as_it_reads_pixels(name: str) -> None:
    loaded = shared(name)
    for media in MEDIA.values():
        inputs = encoded(loaded, media)
        features = see(loaded.model, inputs)
        given = without_pixels(loaded.model, inputs)
        assert not any("pixel" in key for key in given)
        places = torch.isin(inputs["input_ids"], torch.tensor(placeholder_ids(loaded.model.config))).sum()
        assert sum(len(flat) for flat in features.pooled.values()) == places
        with torch.no_grad():
            expected = loaded.model(**inputs).logits
            assert torch.equal(loaded.model(**given, **features.arguments()).logits, expected)
            stored = Features.from_tensors(load(save(features.tensors())))
            assert torch.equal(loaded.model(**given, **stored.arguments()).logits, expected), "twice, and from disk"
            turned = {kind: flat.flip(0) for kind, flat in features.pooled.items()}
            wrong = Features(turned, features.deep, features.listed)
            assert not torch.allclose(loaded.model(**given, **wrong.arguments()).logits, expected, atol=1e-3)


def test_deeper_layers_get_theirs() -> None:
    loaded = shared("qwen3-vl")
    inputs = encoded(loaded, MEDIA["all"])
    features = see(loaded.model, inputs)
    assert {kind: len(layers) for kind, layers in features.deep.items()} == {"image": 1, "video": 1}
    given = without_pixels(loaded.model, inputs)
    other = {kind: tuple(2 * layer for layer in layers) for kind, layers in features.deep.items()}
    with torch.no_grad():
        expected = loaded.model(**inputs).logits
        changed = loaded.model(**given, **Features(features.pooled, other, features.listed).arguments()).logits
    assert not torch.allclose(changed, expected, atol=1e-3)


@pytest.mark.parametrize("name", ["qwen2.5-vl", "qwen3-vl", "llava-onevision", "gemma3"])
def test_features_of_rows_are_those_of_their_batch(name: str) -> None:
    loaded = shared(name)
    media: list[list[Media]] = [[picture(1)], [], [picture(2, size=(48, 32)), picture(3)], [picture(4)]]
    texts = [loaded.renderer.prompt(Chat((Message("user", (*own, "Describe it.")),))) for own in media]
    batch = dict(loaded.renderer.encode(texts, media))
    rows = [see(loaded.model, encoded(loaded, own)) for own in media if own]
    joined = Features.joined([rows[0], NO_FEATURES, *rows[1:]])
    given = without_pixels(loaded.model, batch)
    with torch.no_grad():
        found = loaded.model(**given, **joined.arguments()).logits
        expected = loaded.model(**batch).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real], rtol=1e-5, atol=1e-5)


def test_positions_keep_what_they_are_made_of() -> None:
    """Grids place tokens in three dimensions also where no pixels are given."""
    given = without_pixels(shared("qwen2.5-vl").model, encoded(shared("qwen2.5-vl"), MEDIA["all"]))
    assert {"image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids"} <= given.keys()
    assert without_pixels(shared("llava-onevision").model, encoded(shared("llava-onevision"), MEDIA["all"])).keys() == {
        "input_ids",
        "attention_mask",
    }


@pytest.mark.parametrize("name", [*READING, *SEEING])
def test_who_takes_features(name: str) -> None:
    assert takes_features(shared(name).model) == (name not in READING)


def test_text_alone_has_none() -> None:
    assert NO_FEATURES.arguments() == {}
    assert Features.joined([NO_FEATURES, NO_FEATURES]).arguments() == {}
    assert see(shared("llava").model, encoded(shared("llava"), [])).arguments() == {}


KINDS = st.fixed_dictionaries(
    {}, optional={kind: st.tuples(st.integers(1, 4), st.booleans()) for kind in ("image", "video")}
)


@given(rows=st.lists(KINDS, min_size=1, max_size=4), depth=st.integers(0, 2))
@settings(max_examples=50, deadline=None)
def test_rows_are_joined_in_their_order(rows: list[dict[str, tuple[int, bool]]], depth: int) -> None:
    """A kind has one form for a model, whatever the row."""
    forms = {kind: is_list for row in rows for kind, (_, is_list) in row.items()}
    count = iter(range(1000))

    def flat(length: int) -> Tensor:
        return torch.tensor([[float(next(count))] for _ in range(length)])

    made = [
        Features(
            {kind: flat(length) for kind, (length, _) in row.items()},
            {kind: tuple(flat(length) for _ in range(depth)) for kind, (length, _) in row.items()},
            frozenset(kind for kind in row if forms[kind]),
        )
        for row in rows
    ]
    joined = Features.joined([Features.from_tensors(one.tensors()) for one in made])
    for kind in ("image", "video"):
        own = [one for one in made if kind in one.pooled]
        assert (kind in joined.pooled) == bool(own)
        if own:
            output: Any = joined.arguments()["mm_encoder_outputs"][kind]
            assert isinstance(output.pooler_output, list) == forms[kind]
            assert output.pooler_output[0].flatten().tolist() == [x for one in own for x in one.pooled[kind].flatten()]
            for layer in range(depth):
                expected = [x for one in own for x in one.deep[kind][layer].flatten()]
                assert output.deepstack_features[layer][0].flatten().tolist() == expected
