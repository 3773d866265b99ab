"""The shipped weights keep what their card says, on held-out scenes."""

import json
import random

import pytest
import torch

from mmalign.tiny import MODEL_PATH, draw_scene, lessons, network, packing, scenes
from mmalign.tiny.draw import pixels
from mmalign.tiny.measure import GATES, gate_values, measure_clip_gates, measure_gates
from mmalign.tiny.reader import Reader

pytestmark = pytest.mark.skipif(
    not (MODEL_PATH / "model.safetensors").exists(), reason=f"the weights are not there: {MODEL_PATH}/model.safetensors"
)


@pytest.fixture(scope="module")
def reader():
    return Reader(MODEL_PATH)


@pytest.fixture(scope="module")
def values(reader):
    return gate_values({**measure_gates(reader, 80), **measure_clip_gates(reader, 40)})


@pytest.mark.parametrize("name", GATES)
def test_the_shipped_model_passes_its_gates(values, name):
    value, holds = values[name]
    assert holds, f"{name} is {value}, allowed is {GATES[name]}"


def test_the_shipped_files_are_small_and_whole():
    assert (MODEL_PATH / "model.safetensors").stat().st_size < 12_000_000
    names = {path.name for path in MODEL_PATH.iterdir()}
    assert {"MODEL_CARD.md", "figures.json", "config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert all(gate["holds"] for gate in json.loads((MODEL_PATH / "figures.json").read_text())["gates"].values())


def test_packed_log_probabilities_equal_those_of_plain_transformers(reader):
    shown = scenes(1, 5, "dev")[0]
    groups = list(lessons.picture_groups(shown, random.Random(0), early=False))[:3]
    batch = packing.pack([(packing.picture_prefix(), groups, packing.patchify([pixels(shown)]))], 256)
    ids, places, segment = (torch.from_numpy(part) for part in (batch.ids, batch.places, batch.segment))
    with torch.no_grad():
        hidden = network.read(reader.model, ids, places, segment, network.normalise(torch.from_numpy(batch.patches)))
        packed = reader.model.lm_head(hidden)[0].log_softmax(-1)
    turns = [turn for _, group in groups for turn in group]
    expected = reader.first([draw_scene(shown)] * len(turns), [turn.ask for turn in turns])
    for branch, (turn, row) in enumerate(zip(turns, expected, strict=True), 1):
        answer = batch.labels[0] != packing.IGNORE
        first = ((batch.segment[0] == branch) & answer).nonzero()[0][0]
        torch.testing.assert_close(packed[first], row, atol=1e-4, rtol=0, msg=turn.ask)
