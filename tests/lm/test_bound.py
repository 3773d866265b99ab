"""Seeds of a sample's calls, and the scripted model they are tried on."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.errors import ModelError, SampleError
from mmalign.lm.bound import SampleLM, call_seed
from mmalign.lm.protocol import LM, YES_NO
from mmalign.lm.scripted import ScriptedLM
from mmalign.types import Chat, Completion, Message, Sampling

ASK = Chat((Message("user", ("Describe it.",)),))
FREE = Sampling(temperature=1.0)


def seeds_of(lm: ScriptedLM | None = None, **kwargs: int) -> SampleLM:
    return SampleLM(lm or ScriptedLM(lambda chat, sampling, seed: str(seed)), sample_id="a", **kwargs)


@given(seed=st.integers(0, 2**40), round=st.integers(0, 9), sample_id=st.text(), call=st.integers(0, 99))
def test_seeds_have_63_bits_and_every_part_counts(seed: int, round: int, sample_id: str, call: int) -> None:
    parts = (seed, round, sample_id, call)
    value = call_seed(*parts)
    assert 0 <= value < 2**63
    others = [(seed + 1, *parts[1:]), (seed, round + 1, *parts[2:]), (seed, round, sample_id + "x", call)]
    assert value not in {call_seed(*other) for other in [*others, (*parts[:3], call + 1)]}


def test_seeds_are_pinned() -> None:
    """A change here changes every pair anybody makes again."""
    assert call_seed(0, 0, "scene-00000.png", 0) == SEED


SEED = 5603077367818637549


async def test_calls_are_numbered_when_made_not_when_awaited() -> None:
    lm = seeds_of()
    first, second, third = lm.generate(ASK, FREE), lm.generate_n(ASK, 2, FREE), lm.generate(ASK, FREE)
    late = await third
    early = [(await first), *(await second)]
    assert [int(c.text) for c in [*early, late]] == [call_seed(0, 0, "a", n) for n in range(4)]
    assert lm.num_calls == 4


async def test_every_verb_takes_a_number() -> None:
    lm = seeds_of(seed=5, round=2)
    await lm.choose(ASK, YES_NO)
    await lm.score(ASK, ["x", "y"])
    assert (await lm.generate(ASK)).text == str(call_seed(5, 2, "a", 2))


@pytest.mark.parametrize("slow", [0, 1, 2])
async def test_tasks_side_by_side_draw_the_same_whichever_gets_ahead(slow: int) -> None:
    lm = seeds_of()

    async def chain(number: int) -> list[str]:
        said = [(await lm.generate(ASK, FREE)).text]
        for _ in range(50 if number == slow else 0):
            await asyncio.sleep(0)
        said += [one.text for one in await lm.generate_n(ASK, 2, FREE)]
        return [*said, *(one.text for one in await asyncio.gather(part(), part()))]

    async def part() -> Completion:
        await lm.choose(ASK, YES_NO)
        return await lm.generate(ASK, FREE)

    first = await lm.generate(ASK, FREE)
    beside = asyncio.create_task(chain(0))
    found = await asyncio.gather(chain(1), chain(2))
    last = await lm.generate(ASK, FREE)
    inside = [(), (1,), (2,), (3, 1), (4, 1)]
    expected = [[str(call_seed(0, 0, "a", start, *more)) for more in inside] for start in (1, 2, 3)]
    assert [await beside, *found] == expected
    assert [first.text, last.text] == [str(call_seed(0, 0, "a", call)) for call in (0, 4)]
    assert lm.num_calls == 2 + 3 * 7


async def test_samples_worked_on_by_one_task_have_counts_of_their_own() -> None:
    async def asked() -> str:
        return (await (lm := seeds_of()).generate(ASK, FREE)).text + (await lm.generate(ASK, FREE)).text

    own = "".join(str(call_seed(0, 0, "a", call)) for call in (0, 1))
    assert [await asked(), *await asyncio.gather(asked(), asked())] == [own] * 3


async def test_checkpoints_share_the_count_and_unknown_ones_are_named() -> None:
    initial, now = (ScriptedLM(lambda c, s, seed, who=who: f"{who} {seed}") for who in ("initial", "now"))  # type: ignore[misc]
    lm = SampleLM(now, sample_id="a", checkpoints={"initial": initial})
    one = await lm.generate(ASK)
    two = await lm.at("initial").generate(ASK)
    three = await lm.generate(ASK)
    assert [one.text, two.text, three.text] == [
        f"{who} {call_seed(0, 0, 'a', n)}" for n, who in enumerate(("now", "initial", "now"))
    ]
    assert lm.num_calls == 3
    with pytest.raises(ModelError, match=r"no checkpoint 'best' in this run \(known: initial\)"):
        lm.at("best")


# Scripted -------------------------------------------------------------------------------------------------------------


async def test_a_table_answers_by_prompt() -> None:
    lm: LM = ScriptedLM({"Describe it.": ("a", "b", "c"), "*": "other"})
    assert (await lm.generate(ASK, Sampling(), seed=9)).text == "a"
    drawn = [(await lm.generate(ASK, FREE, seed=seed)).text for seed in range(30)]
    assert set(drawn) == {"a", "b", "c"}
    assert drawn == [(await lm.generate(ASK, FREE, seed=seed)).text for seed in range(30)]
    assert (await lm.generate(Chat((Message("user", ("else",)),)), FREE, seed=0)).text == "other"
    with pytest.raises(SampleError, match=r"no answer to 'Describe it\.'"):
        await ScriptedLM({}).generate(ASK, FREE, seed=0)


async def test_limits_and_stop_strings_hold() -> None:
    lm = ScriptedLM({"*": "one two. three four"})
    cut = await lm.generate(ASK, Sampling(max_new_tokens=2), seed=0)
    assert (cut.text, cut.finish, cut.num_tokens) == ("one two.", "length", 2)
    stopped = await lm.generate(ASK, Sampling(stop=(".",)), seed=0)
    assert (stopped.text, stopped.finish) == ("one two.", "stop")


async def test_unscripted_numbers_are_stable_and_differ_by_chat() -> None:
    def other() -> Chat:
        return Chat((Message("user", ("Another.",)),))

    for first, second in ((ScriptedLM({}), ScriptedLM({})),):
        assert await first.choose(ASK, YES_NO) == await second.choose(ASK, YES_NO)
        assert await first.choose(ASK, YES_NO) != await first.choose(other(), YES_NO)
        assert await first.score(ASK, ["a b"]) == await second.score(ASK, ["a b"])
        assert await first.score(ASK, ["a b"]) != await first.score(other(), ["a b"])
        choice = await first.choose(ASK, YES_NO)
        assert sum(choice.probabilities) == pytest.approx(1)
        assert choice.mass == pytest.approx(1)
        assert len((await first.score(ASK, ["a b"]))[0].logps) == 3


async def test_scripted_choices_keep_their_mass() -> None:
    lm = ScriptedLM({}, choose=lambda chat, options: (0.3, 0.1), score=lambda chat, text: [-1.0, -2.0])
    choice = await lm.choose(ASK, YES_NO)
    assert choice.probabilities == pytest.approx((0.75, 0.25))
    assert choice.mass == pytest.approx(0.4)
    assert (await lm.score(ASK, ["x"]))[0].total == -3.0
    with pytest.raises(SampleError, match="no probabilities"):
        await ScriptedLM({}, choose=lambda chat, options: (1.5, -0.5)).choose(ASK, YES_NO)


async def test_failures_are_scripted_and_counted() -> None:
    lm = ScriptedLM({"*": "x"}, fail=lambda verb, chat: SampleError("bad") if verb == "score" else None)
    with pytest.raises(SampleError, match="bad"):
        await lm.score(ASK, ["x"])
    await asyncio.gather(*(lm.generate(ASK, FREE, seed=seed) for seed in range(3)))
    assert lm.calls == {"score": 1, "generate": 3}
    assert [verb for verb, _ in lm.asked] == ["score", "generate", "generate", "generate"]
    await lm.close()
    with pytest.raises(ModelError, match="closed"):
        await lm.generate(ASK, FREE, seed=0)


def test_methods_and_scripts_need_no_torch() -> None:
    code = "import sys, mmalign.lm.bound, mmalign.lm.scripted, mmalign.lm.spec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
