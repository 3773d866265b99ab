import json
from pathlib import Path

import pytest
from PIL import Image

from mmalign.errors import MediaError, RecipeError
from mmalign.evaluate.items import labelled_items
from mmalign.media.image import PictureLimits
from mmalign.text.objects import Vocabulary

WORDS = Vocabulary.load(None)


def write(folder: Path, *rows: object) -> Path:
    Image.new("RGB", (32, 32), "red").save(folder / "dog.png")
    path = folder / "labels.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_labels_are_read_as_objects_of_the_vocabulary(tmp_path: Path) -> None:
    path = write(tmp_path, {"image": "dog.png", "objects": ["Dogs", "puppy", "traffic light"]}, "")
    (item,) = labelled_items(path, PictureLimits(), WORDS)
    assert {"dog", "traffic light"} <= item.objects
    assert not item.colours


@pytest.mark.parametrize(
    "row", ["{", [], {"image": "dog.png"}, {"image": 3, "objects": []}, {"image": "x", "objects": "dog"}]
)
def test_a_wrong_row_is_named_by_file_and_line(tmp_path: Path, row: object) -> None:
    path = write(tmp_path, {"image": "dog.png", "objects": ["dog"]}, row)
    with pytest.raises(RecipeError, match=r"labels\.jsonl:2: need"):
        labelled_items(path, PictureLimits(), WORDS)


def test_an_empty_or_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="holds no rows"):
        labelled_items(write(tmp_path), PictureLimits(), WORDS)
    with pytest.raises(RecipeError, match="no such file"):
        labelled_items(tmp_path / "none.jsonl", PictureLimits(), WORDS)


def test_a_picture_outside_the_folder_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"image": "../dog.png", "objects": ["dog"]})
    with pytest.raises(MediaError):
        labelled_items(path, PictureLimits(), WORDS)


def test_an_unknown_label_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    path = write(tmp_path, {"image": "dog.png", "objects": ["trafic lihgt"]})
    with pytest.raises(RecipeError, match=r"labels\.jsonl:1: objects: 'trafic lihgt' .* did you mean 'traffic light'"):
        labelled_items(path, PictureLimits(), WORDS)
