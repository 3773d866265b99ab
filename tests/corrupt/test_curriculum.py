from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmalign.corrupt.curriculum import Kind, Order, orders
from mmalign.errors import MediaError
from mmalign.types import Clip, MediaRef

ALL: tuple[Kind, ...] = ("drop", "reverse", "shuffle")


def made(num: int, kinds: tuple[Kind, ...] = ALL, ratios: tuple[int, ...] = (16, 8, 4, 2)) -> list[Order]:
    return orders(range(num), kinds, ratios, random.Random(5))


def test_the_table_of_ten_clips() -> None:
    """The specification's table; at ten clips the ratios 16 and 8 make the same blocks, and one of them goes."""
    found = {(order.kind, order.ratio): list(order.places) for order in made(10)}
    assert [len(found["drop", ratio]) for ratio in (16, 4, 2)] == [1, 2, 5]
    assert found["reverse", 4] == [8, 9, 6, 7, 4, 5, 2, 3, 0, 1]
    assert found["reverse", 16] == list(range(10))[::-1]
    assert found["reverse", 2] == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    assert {ratio for _, ratio in found} == {16, 4, 2}


def test_a_shuffle_of_two_blocks_is_their_reversal_and_comes_once() -> None:
    assert [order.kind for order in made(10, ratios=(2,))] == ["drop", "reverse"]
    assert [order.kind for order in made(11, ratios=(2,))] == ["drop", "reverse", "shuffle"]  # a third, short block


def test_four_clips_have_two_strengths() -> None:
    assert {order.ratio for order in made(4)} == {16, 2}


def test_ratios_come_strongest_first_however_they_are_given() -> None:
    assert [order.ratio for order in made(16, ("reverse",), (2, 16, 4, 8))] == [16, 8, 4, 2]


def test_the_control_keeps_the_order_and_comes_once() -> None:
    assert made(8, ("none",)) == [Order("none", 16, list(range(8)))]


@given(st.integers(2, 40), st.integers(0, 1000))
def test_no_order_twice_and_none_clean(num: int, seed: int) -> None:
    found = orders(range(num), ALL, (16, 8, 4, 2), random.Random(seed))
    places = [tuple(order.places) for order in found]
    assert len(set(places)) == len(places)
    assert tuple(range(num)) not in places
    for order in found:
        if order.kind == "drop":
            assert list(order.places) == sorted(set(order.places))
            assert len(order.places) == max(1, num // order.ratio)
        else:
            assert sorted(order.places) == list(range(num))


def clip(num: int) -> Clip:
    pixels = np.random.default_rng(0).integers(0, 256, (num, 8, 8, 3), dtype=np.uint8)
    return Clip(tuple(map(Image.fromarray, pixels)), tuple(map(float, range(num))), MediaRef("a.mp4", "video"))


def test_frames_in_an_order_are_recorded_as_a_corruption() -> None:
    whole = clip(8)
    damaged = Order("reverse", 4, [6, 7, 4, 5, 2, 3, 0, 1]).of(whole)
    assert [whole.images.index(image) for image in damaged.images] == [6, 7, 4, 5, 2, 3, 0, 1]
    assert damaged.times == whole.times
    [done] = damaged.ref.corruptions
    assert (done.name, done.params) == ("block_reverse", {"ratio": 4, "frames": [6, 7, 4, 5, 2, 3, 0, 1]})
    kept = Order("drop", 4, [2, 5]).of(whole)
    assert kept.times == (2.0, 5.0)
    assert Order("none", 2, range(8)).of(whole) is whole


def test_an_order_that_nobody_sees_is_refused() -> None:
    still = Clip((Image.new("RGB", (4, 4)),) * 4, (0.0, 1.0, 2.0, 3.0), MediaRef("still.mp4", "video"))
    with pytest.raises(MediaError, match=r"still\.mp4"):
        Order("reverse", 4, [3, 2, 1, 0]).of(still)


def test_an_order_that_nobody_sees_is_marked_and_refuses_a_list() -> None:
    (order,) = orders("abba", ("reverse",), (4,), random.Random(0))
    assert (order.seen, list(order.places)) == (False, [3, 2, 1, 0])
    with pytest.raises(MediaError, match="reverse at the ratio 4 changes nothing"):
        order.among("abba")
    (control,) = orders("aaaa", ("none",), (4, 2), random.Random(0))
    assert control.among("aaaa") == list("aaaa")
    both = orders("aaaa", ("reverse", "none"), (4,), random.Random(0))
    assert [(order.kind, order.seen) for order in both] == [("reverse", False), ("none", True)]


@pytest.mark.parametrize("looks", ["aaaaaaab", "baaaaaaa", "aabbaabb", "abababab", "aaaabbbb"])
def test_a_shuffle_is_seen_wherever_another_order_can_be(looks: str) -> None:
    for seed in range(40):
        for order in orders(looks, ("shuffle",), (8, 4), random.Random(seed)):
            size = 8 // order.ratio
            is_uniform = len({looks[at : at + size] for at in range(0, 8, size)}) == 1
            assert order.seen != is_uniform
            assert is_uniform == ([looks[place] for place in order.places] == list(looks))


@given(st.text("abc", min_size=2, max_size=16), st.integers(0, 1000))
def test_no_two_orders_tell_the_same(looks: str, seed: int) -> None:
    found = [order for order in orders(looks, ALL, (16, 8, 4, 2), random.Random(seed)) if order.seen]
    told = ["".join(order.among(looks)) for order in found]
    assert len(set(told)) == len(told)
    assert looks not in told
