import pytest

from mmalign.evaluate.descriptions import shortened
from mmalign.evaluate.events import measure_events, read_events
from mmalign.evaluate.items import Item, clip_items
from mmalign.tiny.clips import clips
from mmalign.tiny.happenings import tell
from mmalign.types import Clip, Sample

UP, LEFT, GONE = "the fish moves up", "the boat moves to the left", "the sun disappears"


def item(*events: str) -> Item:
    return Item(Sample("one"), frozenset(), events=events)


def test_a_worked_example() -> None:
    texts = [
        f"First {UP}. Then the fish turns red. Finally {LEFT}.",  # one of three is false, the true ones in order
        f"First {GONE}. Finally {UP}.",  # wrong way round
        "Nothing happens.",
    ]
    values = measure_events(texts, [item(UP, LEFT), item(UP, GONE), item(UP, LEFT)], read_events)
    assert values.pop("words") == pytest.approx((17 + 9 + 2) / 3)
    assert values == pytest.approx(
        {"event_chair_i": 1 / 5, "event_chair_s": 1 / 3, "event_recall": 4 / 6, "events": 5 / 3, "order": 1 / 2}
    )


def test_order_is_left_out_where_no_answer_tells_two_true_events() -> None:
    assert "order" not in measure_events([f"First {UP}."], [item(UP, LEFT)], read_events)


def test_a_repeated_event_counts_once_for_recall_and_order() -> None:
    values = measure_events([f"First {UP}. Then {LEFT}. Finally {UP}."], [item(UP, LEFT)], read_events)
    assert (values["event_recall"], values["order"], values["events"]) == (1.0, 1.0, 3.0)


def test_true_captions_of_held_out_clips_are_perfect() -> None:
    items = clip_items(12, seed=5, split="test", num_frames=8)
    texts = [tell(drawn.start, drawn.events) for drawn in clips(12, 5, "test")]
    values = measure_events(texts, items, read_events)
    assert (values["event_chair_i"], values["event_recall"], values["order"]) == (0.0, 1.0, 1.0)
    for shown in items:
        clip = shown.sample.media[0]
        assert isinstance(clip, Clip)
        assert (len(clip.images), clip.ref.kind, clip.ref.path) == (8, "video", shown.sample.id)


def test_cut_texts_tell_as_many_events_as_wanted() -> None:
    texts = [f"At the start there is a fish. First {UP}. Then {LEFT}. Finally {GONE}.", f"First {UP}. Finally {GONE}."]
    cut = shortened(texts, 1.5, read_events)
    assert sum(len(read_events(text)) for text in cut) == 3
    assert all(full.startswith(text) for full, text in zip(texts, cut, strict=True))
