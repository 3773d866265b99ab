"""What a format cannot express is refused in one line that names file, row and reason, or left out and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmalign.errors import DataError
from mmalign.pairs import PairRow, read_pairs, write_pairs
from tests.convert.cases import CLIPS, PICTURES, clip, convert, make_media, pair, picture, text, turn


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


ASKED = turn("user", picture(), text("What is there?"))
BLUR = [{"name": "blur", "params": {"radius": 3}}]
FRAMES = {"numbers": [0, 4], "times": [0.0, 0.5], "fps": 8.0, "total": 9, "backend": "pyav"}
ALL = ("trl", "llamafactory", "swift")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_media(tmp_path / "media")


UNFIT: list[tuple[tuple[str, ...], PairRow, str]] = [
    (ALL, pair(turn("user", text("Is <image> a tag?"))), "a turn holds the text '<image>'"),
    (ALL, pair(turn("system", text("<video>")), ASKED), "a turn holds the text '<video>'"),
    (ALL, pair(chosen="It says <audio>."), "the chosen answer holds the text '<audio>'"),
    (ALL, pair(rejected="<image>"), "the rejected answer holds the text '<image>'"),
    (ALL, pair(ASKED, turn("assistant", text("It is"))), "begun"),
    (ALL, pair(ASKED, turn("system", text("Be brief.")), ASKED), "a system prompt that is not its first turn"),
    (ALL, pair(turn("system", text("Be brief."))), "has no user turn"),
    (ALL, pair(turn("user", picture("away.png"))), "away.png: no such file"),
    (ALL, pair(turn("user", picture("../a.png"))), "../a.png: leaves the data folder"),
    (ALL, pair(turn("user", picture("/etc/hostname"))), "/etc/hostname: is an absolute path"),
    (ALL, pair(turn("user", picture("https://a.b/c.png"))), "is an address"),
    (ALL, pair(turn("user", picture(corruptions=BLUR))), "a.png: is shown damaged (blur), which is no file yet"),
    (ALL[1:], pair(ASKED, ASKED), "do not take turns (user, user)"),
    (ALL[1:], pair(turn("user", clip(corruptions=BLUR))), "c.mkv: is shown damaged (blur)"),
    (ALL[:1], pair(turn("user", clip())), "c.mkv: is a clip"),
    (ALL[:2], pair(rejected_context=[turn("user", text("Other words."))]), "has a context of its own"),
    (ALL[2:], pair(chosen="A crab."), "both answers are the same"),
    (ALL[2:], pair(rejected=""), "an answer is empty"),
    (
        ALL[2:],
        pair(turn("user", clip(frames=FRAMES)), rejected_context=[turn("user", clip())]),
        "about other frames of the same clip",
    ),
]


@pytest.mark.parametrize(
    ("to", "row", "reason"), [(to, row, reason) for tools, row, reason in UNFIT for to in tools], ids=str
)
def test_one_pair_that_does_not_fit_ends_the_conversion(to: str, row: PairRow, reason: str, root: Path) -> None:
    source, out = root.parent / "pairs.parquet", root.parent / "out"
    write_pairs(source, [pair(), row])
    with pytest.raises(DataError) as caught:
        convert(source, to, out, root=root)
    line = str(caught.value)
    assert line.startswith(f"{source}: row 1 (pair s#0.0): ")
    assert reason in line
    assert "--skip-unfit" in line
    assert "\n" not in line
    assert listed(root.parent) == ["media", "pairs.parquet"], "nothing is left behind"


@pytest.mark.parametrize("to", ALL)
def test_pairs_that_do_not_fit_are_left_out_and_counted_when_asked(to: str, root: Path) -> None:
    rows = [row for tools, row, _ in UNFIT if to in tools]
    source, out = root.parent / "pairs.parquet", root.parent / "out"
    write_pairs(source, [rows[0], pair(id="good"), *rows[1:]])
    done = convert(source, to, out, root=root, skips=True)
    assert (done.pairs, done.unfit) == (1, len(rows))
    assert "row 0" in done.first_unfit
    convert(out, "mmalign", root.parent / "back", root=root)
    assert [row.id for row in read_pairs(root.parent / "back" / "pairs.parquet")] == ["good"]


def test_nothing_is_written_where_no_pair_fits(root: Path) -> None:
    write_pairs(root.parent / "pairs.parquet", [UNFIT[0][1]])
    with pytest.raises(DataError, match="no pair of it can be converted"):
        convert(root.parent / "pairs.parquet", "trl", root.parent / "out", root=root, skips=True)


def test_a_picture_that_has_changed_is_not_passed_off_as_the_one_of_the_pair(root: Path) -> None:
    write_pairs(root.parent / "pairs.parquet", [pair(turn("user", picture(PICTURES[0], root)))])
    (root / PICTURES[0]).write_bytes(b"another")
    for to in (*ALL, "mmalign"):
        with pytest.raises(DataError, match="has changed since"):
            convert(root.parent / "pairs.parquet", to, root.parent / "out", root=root, copies=True)


def test_a_link_out_of_the_data_folder_is_not_followed(root: Path) -> None:
    (root / "link.png").symlink_to("/etc/hostname")
    write_pairs(root.parent / "pairs.parquet", [pair(turn("user", picture("link.png")))])
    for copies in (False, True):
        with pytest.raises(DataError, match="leads outside"):
            convert(root.parent / "pairs.parquet", "swift", root.parent / "out", root=root, copies=copies)


def make_file(out: Path) -> None:
    out.write_text("mine")


def make_full(out: Path) -> None:
    out.mkdir()
    (out / "mine").touch()


@pytest.mark.parametrize("make", [make_file, make_full, lambda out: out.symlink_to(out.parent / "media")])
def test_what_is_there_is_never_overwritten(make: Any, root: Path) -> None:
    write_pairs(root.parent / "pairs.parquet", [pair()])
    make(root.parent / "out")
    before = listed(root.parent)
    with pytest.raises(DataError, match="exists and is not empty"):
        convert(root.parent / "pairs.parquet", "trl", root.parent / "out", root=root)
    assert listed(root.parent) == before


def test_an_empty_folder_is_filled(root: Path) -> None:
    write_pairs(root.parent / "pairs.parquet", [pair()])
    (root.parent / "out").mkdir()
    convert(root.parent / "pairs.parquet", "swift", root.parent / "out", root=root)
    assert (root.parent / "out" / "pairs.jsonl").is_file()


def test_a_failure_in_the_middle_of_writing_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmalign.convert import swift

    def fails(self: Any, row: Any, seen: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(swift._SwiftWriter, "add", fails)
    write_pairs(root.parent / "pairs.parquet", [pair()])
    with pytest.raises(KeyboardInterrupt):
        convert(root.parent / "pairs.parquet", "swift", root.parent / "out", root=root)
    assert listed(root.parent) == ["media", "pairs.parquet"]


def test_frames_are_asked_for_only_where_they_make_sense(root: Path) -> None:
    write_pairs(root.parent / "pairs.parquet", [pair(turn("user", clip(CLIPS[0])))])
    for to, copies in (("trl", False), ("swift", True)):
        with pytest.raises(DataError, match="--to trl --copy-media"):
            convert(root.parent / "pairs.parquet", to, root.parent / "out", root=root, frames=True, copies=copies)
    with pytest.raises(DataError, match="does not say which frames"):
        convert(root.parent / "pairs.parquet", "trl", root.parent / "out", root=root, frames=True, copies=True)
