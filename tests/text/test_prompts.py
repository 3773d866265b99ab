from __future__ import annotations

import pytest
from PIL import Image

from mmalign.text.prompts import DETAIL, IMAGINE, IS_THERE, IS_TRUE, LIST_OBJECTS, PLAIN, STEP_BY_STEP, TELL, worded
from mmalign.types import Clip, MediaRef, Picture

FRAME = Image.new("RGB", (4, 4))
PICTURE = Picture(FRAME, MediaRef("a.png"))
CLIP = Clip((FRAME,), (0.0,), MediaRef("a.mp4", "video"))


@pytest.mark.parametrize("prompt", [*DETAIL, *PLAIN, STEP_BY_STEP, *IMAGINE, LIST_OBJECTS, IS_THERE, IS_TRUE])
def test_the_pools_speak_of_what_is_shown(prompt: str) -> None:
    assert "picture" in prompt
    assert worded(prompt, [PICTURE]) == worded(prompt, []) == prompt
    assert worded(prompt, [PICTURE, CLIP]) == prompt.replace("picture", "video")


@pytest.mark.parametrize("prompt", ["Is there a picture frame on the wall?", f"{DETAIL[0]} Be brief.", *TELL])
def test_words_of_users_stay_as_they_are(prompt: str) -> None:
    assert worded(prompt, [CLIP]) == prompt
