from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

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
        (STIC, {"corruptions": ("blurr",)}, "corruptions: 'blurr' is unknown; there are"),
        (STIC, {"plain_prompts": ()}, "plain_prompts: must not be empty"),
        (RRPO, {"corruptions": ("blurr",)}, "corruptions: 'blurr' is unknown; there are"),
        (RRPO, {"corruptions": ()}, "corruptions: must not be empty"),
        (RRPO, {"prompts": ()}, "prompts: must not be empty"),
        (RRPO, {"max_same": 1.0}, "max_same: 1.0"),
        (SelfConsistency, {"samples": 1}, "samples: 1 "),
        (SelfConsistency, {"min_gap": 0.0}, "min_gap: 0.0 "),
        (APASI, {"injection_rate": 0.0}, "injection_rate: 0.0 "),
        (APASI, {"min_injected": 0}, "min_injected"),
        (APASI, {"openers": ("There is",)}, "openers: 'There is' must hold"),
    ],
)
def test_wrong_values_name_the_key(cls: type, values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**values)


@pytest.mark.parametrize("cls", [SelfConsistency, APASI])
def test_a_wrong_word_list_is_refused_at_once(cls: type, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"vocabulary: .*none\.txt: cannot be read"):
        cls(vocabulary=str(tmp_path / "none.txt"))
    assert cls(vocabulary="drawn").vocabulary == "drawn"


def test_listing_methods_loads_no_torch() -> None:
    code = "import sys; from mmalign.methods import list_methods; list_methods(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
