from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mmalign.corrupt import corruption_names
from mmalign.errors import RecipeError, SampleError
from mmalign.methods import (
    SelectingMethod,
    SurveyMethod,
    describe,
    find_method,
    list_methods,
    method,
    method_names,
    refuse_media,
)
from mmalign.methods.apasi import APASI
from mmalign.methods.rrpo import RRPO
from mmalign.methods.self_consistency import SelfConsistency
from mmalign.methods.stic import STIC
from mmalign.methods.videosavi import VideoSAVi
from mmalign.types import MediaRef

OWN = '''
from __future__ import annotations
from mmalign.methods import method
from mmalign.types import Completion, Pair

@method("mine", media="text", paper="none")
class Mine:
    """A method of my own,
    over two lines.

    Args:
        rate: How much
            of it.
    """

    rate: float = 0.5
    words: tuple[str, ...] = ("a",)

    async def pairs(self, sample, lm, rng):
        yield Pair(sample.ask("?"), Completion("a"), Completion("b"))
'''


def test_methods_are_found_by_module_name() -> None:
    assert {"apasi", "rrpo", "self_consistency", "stic", "temple", "videosavi"} <= set(method_names())
    assert find_method("stic") is STIC
    assert find_method("mmalign.methods.stic:STIC") is STIC
    assert [info.name for info in list_methods()] == method_names()


def test_a_method_file_stays_on_one_screen() -> None:
    folder = Path(find_method.__code__.co_filename).parent
    long = {path.name for path in folder.glob("*.py") if len(path.read_text(encoding="utf-8").splitlines()) > 150}
    assert long <= {"__init__.py"}


def test_every_parameter_is_documented_and_every_method_has_its_paper() -> None:
    for info in list_methods():
        assert info.summary.endswith(".")
        assert "arXiv" in info.paper
        assert set(info.media) <= {"image", "video"}
        assert all(parameter.doc.endswith(".") for parameter in info.parameters), info


def test_methods_for_pictures_work_on_clips_and_methods_for_clips_on_clips_only() -> None:
    taken = {info.name: info.media for info in list_methods()}
    for name in ("stic", "self_consistency", "apasi"):
        assert taken[name] == ("image", "video")
    for name in ("rrpo", "temple", "videosavi"):
        assert taken[name] == ("video",)


@pytest.mark.parametrize(
    ("cls", "kind", "message"),
    [
        (STIC, "image", ""),
        (STIC, "video", ""),
        (RRPO, "video", ""),
        (RRPO, "image", "a.mp4 is a picture; method rrpo takes videos only"),
    ],
)
def test_other_media_are_refused_in_one_line(cls: type, kind: Any, message: str) -> None:
    refs = [MediaRef("a.mp4", kind)]
    if not message:
        refuse_media(cls(), refs)
        with pytest.raises(SampleError, match=r"the sample has no media; method \w+ takes .*videos only"):
            refuse_media(cls(), [])
    else:
        with pytest.raises(SampleError, match=message):
            refuse_media(cls(), refs)


def test_a_users_method_for_pictures_refuses_clips() -> None:
    @method("own", media=("image", "text"))
    class Own:
        def pairs(self) -> None: ...

    with pytest.raises(SampleError, match="b is a clip; method own takes images and text only"):
        refuse_media(Own(), [MediaRef("a"), MediaRef("b", "video")])
    refuse_media(Own(), [])  # it takes texts


@pytest.mark.parametrize("media", ["pictures", (), ("image", "sound")])
def test_media_that_do_not_exist_are_refused(media: Any) -> None:
    with pytest.raises(TypeError, match="it must be one or more of"):

        @method("odd", media=media)
        class Odd:
            def pairs(self) -> None: ...


def test_what_a_method_tells_of_itself() -> None:
    info = describe(STIC)
    found = {parameter.name: (parameter.type, parameter.default) for parameter in info.parameters}
    assert found["p_bad_prompt"] == ("float", 0.5)
    assert found["corruptions"] == ("tuple[str, ...]", ("low_resolution", "color_jitter"))
    kinds = {parameter.name: parameter.type for parameter in describe(SelfConsistency).parameters}
    assert kinds["score"] == "Literal['count', 'rate', 'soft', 'min_logp']"


def test_optional_passes_are_seen_by_their_protocols() -> None:
    assert isinstance(APASI(), SurveyMethod)
    assert not isinstance(STIC(), SurveyMethod | SelectingMethod)
    assert isinstance(SelfConsistency(), SelectingMethod)


@pytest.mark.parametrize(("name", "near"), [("stik", "stic"), ("self-consistency", "self_consistency"), ("", "")])
def test_an_unknown_name_gets_the_nearest(name: str, near: str) -> None:
    with pytest.raises(RecipeError, match=f"method.name: '{name}' is unknown, did you mean {near}"):
        find_method(name)


def test_a_users_own_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OWN, encoding="utf-8")
    cls = find_method(f"{path}:Mine")
    assert find_method(f"{path}:Mine") is cls
    info = describe(cls)
    assert (info.name, info.media, info.summary) == ("mine", ("text",), "A method of my own, over two lines.")
    assert [(p.name, p.type, p.default, p.doc) for p in info.parameters] == [
        ("rate", "float", 0.5, "How much of it."),
        ("words", "tuple[str, ...]", ("a",), ""),
    ]
    assert cls(rate=0.1).rate == 0.1
    path.write_text(OWN.replace("0.5", "0.75"), encoding="utf-8")
    assert find_method(f"{path}:Mine")().rate == 0.75


def test_mistakes_in_own_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    with pytest.raises(RecipeError, match=r"mine\.py: cannot be read \(No such file"):
        find_method(f"{path}:Mine")
    path.write_text(OWN, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"no class under @method of that name there; it holds Mine"):
        find_method(f"{path}:Other")
    path.write_text("import nothing_like_this\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"mine\.py: ModuleNotFoundError: No module named 'nothing_like_this'"):
        find_method(f"{path}:Mine")
    path.write_text("x = (\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"mine\.py: SyntaxError"):
        find_method(f"{path}:Mine")
    with pytest.raises(RecipeError, match=r"'no_such_package.module': No module named"):
        find_method("no_such_package.module:Mine")


def test_a_class_without_pairs_or_defaults_is_refused() -> None:
    with pytest.raises(TypeError, match="has no `pairs`"):

        @method("empty")
        class Empty:
            pass

    with pytest.raises(TypeError, match="parameter rate has no default"):

        @method("bare")
        class Bare:
            rate: float

            def pairs(self) -> None: ...


def test_a_class_that_is_a_dataclass_already_is_taken_as_it_is() -> None:
    @method("own")
    @dataclass(frozen=True, kw_only=True)
    class Own:
        rate: float = 0.5

        def pairs(self) -> None: ...

    assert Own(rate=0.1).rate == 0.1
    assert describe(Own).name == "own"


def test_parameters_are_frozen_and_by_keyword() -> None:
    with pytest.raises(AttributeError):
        STIC().p_bad_prompt = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        STIC(0.3)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (STIC, {"p_bad_prompt": 1.5}, "p_bad_prompt: 1.5"),
        (STIC, {"corruptions": ("blurr",)}, "corruptions: 'blurr' is unknown, did you mean 'gaussian_blur'"),
        (STIC, {"corruptions": ("clip_swap",)}, "corruptions: 'clip_swap' needs a second clip"),
        (STIC, {"temperature": -1.0}, "temperature: -1.0 must be 0"),
        (STIC, {"max_new_tokens": 0}, "max_new_tokens: 0 must be 1 or more"),
        (STIC, {"plain_prompts": ()}, "plain_prompts: must not be empty"),
        (RRPO, {"corruptions": ("blurr",)}, "corruptions: 'blurr' is unknown, did you mean 'gaussian_blur'"),
        (RRPO, {"corruptions": ("box_mask", "clip_swap")}, "corruptions: 'clip_swap' needs a second clip"),
        (RRPO, {"temperature": -1.0}, "temperature: -1.0 must be 0"),
        (RRPO, {"max_new_tokens": 0}, "max_new_tokens: 0 must be 1 or more"),
        (RRPO, {"own_references": -3}, "own_references: -3 is too small; use 0 or more"),
        (RRPO, {"corruptions": ()}, "corruptions: must not be empty"),
        (RRPO, {"prompts": ()}, "prompts: must not be empty"),
        (RRPO, {"max_same": 1.0}, "max_same: 1.0"),
        (SelfConsistency, {"samples": 1}, "samples: 1 "),
        (SelfConsistency, {"min_gap": 0.0}, "min_gap: 0.0 "),
        (SelfConsistency, {"min_gap": float("nan")}, "min_gap: nan "),
        (SelfConsistency, {"top_p": 0.0}, "top_p: 0.0 must be more than 0"),
        (APASI, {"injection_rate": 0.0}, "injection_rate: 0.0 "),
        (APASI, {"min_injected": 0}, "min_injected"),
        (APASI, {"injected_tokens": 0}, "injected_tokens: 0 is too small"),
        (APASI, {"repetition_penalty": 0.0}, "repetition_penalty: 0.0 must be"),
        (VideoSAVi, {"length_ratio": (2.0, 0.5)}, r"length_ratio: \(2.0, 0.5\) must be"),
        (VideoSAVi, {"max_similarity": -1.0}, "max_similarity: -1.0 must be 0 to 1"),
        (VideoSAVi, {"top_p": 0.0}, "top_p: 0.0 must be more than 0"),
        (VideoSAVi, {"min_gap": float("nan")}, "min_gap: .* a gap above 0"),
        (VideoSAVi, {"temperatures": (0.3, -1.0)}, r"temperatures: \(0.3, -1.0\) must all be"),
        (VideoSAVi, {"max_new_tokens": 0}, "max_new_tokens: 0 must be 1 or more"),
        (APASI, {"openers": ("There is",)}, "openers: 'There is' must hold"),
    ],
)
def test_wrong_values_name_the_key(cls: type, values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**values)


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (RRPO, {"window": 0}, "local_shuffle.window: got 0, need a whole number from 2"),
        (RRPO, {"window": 1}, "local_shuffle.window: got 1, need a whole number from 2"),
        (RRPO, {"area": (0.9, 0.1)}, r"box_mask.area: got \(0.9, 0.1\), need"),
        (RRPO, {"area": (0.0, 2.0)}, r"box_mask.area: got \(0.0, 2.0\), need"),
        (STIC, {"short_side": 0}, "low_resolution.short_side: got 0"),
        (STIC, {"brightness": (1.5, 0.5)}, "color_jitter.brightness: got"),
    ],
)
def test_wrong_ranges_of_damage_are_refused_at_once(cls: type, values: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        cls(**values)


def test_every_damage_of_one_clip_can_be_named_once() -> None:
    with pytest.raises(ValueError, match="corruptions: 'nothing' is unknown") as caught:
        RRPO(corruptions=("nothing",))
    named = str(caught.value).partition("there are ")[2].split(", ")
    assert sorted({*named, "clip_swap"}) == sorted([*named, "clip_swap"]) == corruption_names("video")
    assert RRPO(corruptions=tuple(named)).corruptions == tuple(named)


@pytest.mark.parametrize("cls", [SelfConsistency, APASI])
def test_a_wrong_word_list_is_refused_at_once(cls: type, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"vocabulary: .*none\.txt: cannot be read"):
        cls(vocabulary=str(tmp_path / "none.txt"))
    assert cls(vocabulary="drawn").vocabulary == "drawn"


def test_listing_methods_loads_no_torch() -> None:
    code = "import sys; from mmalign.methods import list_methods; list_methods(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
