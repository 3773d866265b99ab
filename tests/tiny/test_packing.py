"""Packed training rows equal what the processor and the stock model make of each question alone."""

import random

import numpy as np
import pytest
import torch
from transformers.video_utils import VideoMetadata

from mmalign.tiny import draw_scene, lessons, network, packing, scenes
from mmalign.tiny.build import build_config, build_model, build_processor
from mmalign.tiny.clips import clips, frames
from mmalign.tiny.draw import pixels
from mmalign.tiny.world import KINDS, PLACES, Scene, Thing


@pytest.fixture(scope="module")
def processor():
    return build_processor()


@pytest.fixture(scope="module")
def model(processor):
    torch.manual_seed(0)
    model = build_model(build_config(processor.tokenizer)).eval()
    torch.nn.init.normal_(model.model.visual.pos_embed.weight)  # so that positions matter
    return model


def scored(model, batch):
    """Log-probabilities (L, vocabulary) of the packed row."""
    ids, places, segment = (torch.from_numpy(part) for part in (batch.ids, batch.places, batch.segment))
    patches = network.normalise(torch.from_numpy(batch.patches))
    with torch.no_grad():
        return model.lm_head(network.read(model, ids, places, segment, patches))[0].log_softmax(-1), patches


def compare(model, processor, prefix, groups, patches, kind, given):
    batch = packing.pack([(prefix, groups, patches)], 512)
    packed, floats = scored(model, batch)
    turns = [turn for _, group in groups for turn in group]
    assert len(turns) == batch.segment.max()
    for branch, turn in enumerate(turns, 1):
        parts = [{"type": kind}, {"type": "text", "text": turn.ask}]
        chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": turn.answer}]
        alone = processor(text=[processor.apply_chat_template(chat)], return_tensors="pt", **given)
        chosen = (batch.segment[0] == 0) | (batch.segment[0] == branch)
        assert batch.ids[0][chosen].tolist() == alone["input_ids"][0].tolist()
        seen = alone["pixel_values" if kind == "image" else "pixel_values_videos"].reshape(floats.shape)
        torch.testing.assert_close(floats, seen, atol=1e-6, rtol=0)
        with torch.no_grad():
            expected = model(**alone).logits[0].log_softmax(-1)
        torch.testing.assert_close(packed[torch.from_numpy(chosen)], expected, atol=1e-4, rtol=0)


def test_a_packed_picture_equals_each_question_alone(model, processor):
    shown = scenes(1, 1, "dev")[0]
    groups = list(lessons.picture_groups(shown, random.Random(0), early=False))[:6]
    patches = packing.patchify([pixels(shown)])
    compare(model, processor, packing.picture_prefix(), groups, patches, "image", {"images": [draw_scene(shown)]})


@pytest.mark.parametrize(("num", "fps"), [(8, 2.0), (16, 24.0), (7, 4.0)])
def test_a_packed_clip_equals_each_question_alone(model, processor, num, fps):
    shown = clips(1, 1, "dev")[0]
    film = frames(shown, num)
    groups = list(lessons.clip_groups(shown, random.Random(0)))[:3]
    told = VideoMetadata(total_num_frames=num, fps=fps, frames_indices=list(range(num)))
    given = {"videos": [np.stack(film)], "video_metadata": [told]}
    compare(model, processor, packing.clip_prefix(num, fps), groups, packing.patchify(film), "video", given)


def test_labels_stand_one_before_the_answer_they_predict():
    batch = lessons.picture_batch(0, 0, lessons.Shape(2, 256))
    end = packing.encode("<|end|>")[0]
    for row in range(2):
        spots = np.flatnonzero(batch.labels[row] != packing.IGNORE)
        assert len(spots) > 20
        assert (batch.ids[row][spots + 1] == batch.labels[row][spots]).all()
        assert (batch.segment[row][spots + 1] == batch.segment[row][spots]).all()
        assert (batch.labels[row][spots] == end).sum() == batch.segment[row].max()


def test_a_pair_that_does_not_fit_is_left_out_whole():
    shown = scenes(1, 2, "dev")[0]
    groups = list(lessons.picture_groups(shown, random.Random(0), early=True))
    for length in (60, 120, 180):
        batch = packing.pack([(packing.picture_prefix(), groups, None)], length)
        yes, no = packing.encode("Yes")[0], packing.encode("No")[0]
        pairs = np.isin(batch.tags, [lessons.TAGS.index(name) for name in lessons.YES_NO])
        assert (batch.labels[pairs] == yes).sum() == (batch.labels[pairs] == no).sum()


def test_dense_labels_name_what_stands_on_a_token():
    labels = packing.dense_labels(Scene((Thing("sun", "red", "big", PLACES[0]),), "sky"))
    assert labels[0, 0] == 1 + KINDS.index("sun")
    assert labels[0, -1] == 0


def test_batches_depend_on_nothing_but_seed_and_step():
    shape = lessons.Shape(2, 192)
    one, two = lessons.picture_batch(0, 7, shape), lessons.picture_batch(0, 7, shape)
    assert (one.ids == two.ids).all()
    assert (one.patches == two.patches).all()
    assert (lessons.picture_batch(0, 8, shape).ids != one.ids).any()
    assert len(lessons.clip_batch(0, 0, 8, lessons.Shape(2, 192)).patches) == 8
