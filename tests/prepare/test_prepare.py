"""`mmalign prepare`: every good picture becomes a sample, every bad one a line with its reason."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mmalign import prepare
from mmalign.errors import DataError, StoreError
from mmalign.media.image import PictureLimits, file_sha256
from mmalign.media.read import MediaLimits, open_media
from mmalign.prepare import prepare_images, prepare_text
from mmalign.samples import SCHEMA, data_folder, read_samples
from tests.media.hostile import encoded, quarters, write_hostile_folder

USER = {"role": "user", "content": "a"}


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_hostile_folder(tmp_path: Path) -> None:
    root, output = tmp_path / "pictures", tmp_path / "out" / "samples.parquet"
    expected = write_hostile_folder(root)
    good = sorted(name for name, reason in expected.items() if reason is None)
    bad = {name: reason for name, reason in expected.items() if reason is not None}
    calls: list[tuple[int, int]] = []
    summary = prepare_images(root, output, prompt="What?", workers=3, progress=lambda done, n: calls.append((done, n)))

    assert calls == [(done, len(expected)) for done in range(1, len(expected) + 1)]
    assert summary.num_samples == len(good)
    assert summary.num_rejected == len(bad)
    assert summary.num_others == 5
    assert files(output.parent) == ["samples.parquet", "samples.rejected.jsonl"]
    assert f"{len(good)} samples -> {output}" in str(summary)

    table = pq.read_table(output)
    assert table.schema.equals(SCHEMA)
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == good
    for row in rows:
        assert row["sha256"] == file_sha256(root / row["id"])
        assert row["bytes"] == (root / row["id"]).stat().st_size
        assert json.loads(row["media"]) == [{"type": "image", "path": row["id"], "sha256": row["sha256"]}]
    by_name = {row["id"]: row for row in rows}
    assert (by_name["large.jpg"]["width"], by_name["large.jpg"]["height"]) == (3000, 2000)
    assert by_name["moving.gif"]["frames"] == 3
    assert (by_name["exif/6.jpg"]["width"], by_name["exif/6.jpg"]["height"]) == (96, 64)
    # The link shows the same bytes under a second name.
    assert by_name["plain.jpg"]["duplicate_of"] == "link inside.jpg"
    assert by_name["link inside.jpg"]["duplicate_of"] is None
    assert summary.num_duplicates == sum(row["duplicate_of"] is not None for row in rows) >= 1

    assert summary.rejected is not None
    lines = [json.loads(line) for line in summary.rejected.read_text(encoding="utf-8").splitlines()]
    assert [line["path"] for line in lines] == sorted(bad)
    for line in lines:
        assert bad[line["path"]] in line["reason"]
        assert not line["reason"].startswith(line["path"])

    samples = list(read_samples(output))
    assert [sample.id for sample in samples] == good
    assert all(sample.prompt == "What?" for sample in samples)
    for sample in samples:
        assert open_media(sample, data_folder(output), MediaLimits()).media[0].image.mode == "RGB"


def test_equal_folders_give_equal_bytes(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    write_hostile_folder(root)
    outputs = [root / "samples.parquet", root / "again.parquet"]
    for output, workers in zip(outputs, (1, 7), strict=True):
        prepare_images(root, output, workers=workers)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert (
        outputs[0].with_suffix(".rejected.jsonl").read_bytes() == outputs[1].with_suffix(".rejected.jsonl").read_bytes()
    )


@pytest.mark.parametrize("place", [".", "pictures", "pictures/sub", "elsewhere"])
def test_the_data_folder_is_found_again(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "pictures"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a.png").write_bytes(encoded(quarters(), "PNG"))
    monkeypatch.chdir(tmp_path)
    output = Path(place) / "samples.parquet"
    prepare_images(Path("pictures"), output)
    assert data_folder(output).resolve() == root.resolve()
    if place != "elsewhere":
        moved = tmp_path.with_name(f"{tmp_path.name}-moved")
        tmp_path.rename(moved)
        monkeypatch.chdir(moved)
        assert data_folder(moved / output).resolve() == (moved / "pictures").resolve()
        moved.rename(tmp_path)


def test_an_old_list_of_refused_files_goes(tmp_path: Path) -> None:
    root, output = tmp_path / "pictures", tmp_path / "samples.parquet"
    root.mkdir()
    (root / "a.png").write_bytes(encoded(quarters(), "PNG"))
    (root / "b.png").write_bytes(b"")
    assert prepare_images(root, output).num_rejected == 1
    assert files(tmp_path) == ["pictures", "samples.parquet", "samples.rejected.jsonl"]
    (root / "b.png").unlink()
    assert prepare_images(root, output).rejected is None
    assert files(tmp_path) == ["pictures", "samples.parquet"]


def test_no_good_picture(tmp_path: Path) -> None:
    root, output = tmp_path / "pictures", tmp_path / "samples.parquet"
    root.mkdir()
    with pytest.raises(DataError, match=r"holds no pictures \(0 other files\)"):
        prepare_images(root, output)
    (root / "a.png").write_bytes(b"")
    output.write_bytes(b"earlier")
    with pytest.raises(DataError, match=r"none of 1 pictures can be used; .*samples\.rejected\.jsonl says why"):
        prepare_images(root, output)
    assert json.loads((tmp_path / "samples.rejected.jsonl").read_text()) == {
        "path": "a.png",
        "reason": "is empty (0 bytes)",
    }
    assert output.read_bytes() == b"earlier"


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    root.mkdir()
    for name in (b"caf\xe9.png", b"good.png"):
        (root / os.fsdecode(name)).write_bytes(encoded(quarters(), "PNG"))
    summary = prepare_images(root, tmp_path / "samples.parquet")
    assert summary.rejected is not None
    assert json.loads(summary.rejected.read_text()) == {
        "path": r"caf\udce9.png",
        "reason": "the file name is not UTF-8; rename the file",
    }


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_stopped_preparation_leaves_the_earlier_file(
    tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, output = tmp_path / "pictures", tmp_path / "samples.parquet"
    root.mkdir()
    for shade in range(5):
        (root / f"{shade}.png").write_bytes(encoded(quarters(shade=shade), "PNG"))
    prepare_images(root, output)
    before = output.read_bytes()

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise error

    wanted = StoreError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(wanted):
        prepare_images(root, output, progress=stop)
    assert output.read_bytes() == before
    assert files(tmp_path) == ["pictures", "samples.parquet"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prepare")]


def test_few_pictures_are_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "pictures"
    root.mkdir()
    for shade in range(40):
        (root / f"{shade:02}.png").write_bytes(encoded(quarters(shade=shade), "PNG"))
    begun = 0
    ahead: list[int] = []
    inspect = prepare.inspect_picture

    def count(path: Path, name: str, limits: PictureLimits) -> object:
        nonlocal begun
        begun += 1
        return inspect(path, name, limits)

    monkeypatch.setattr(prepare, "inspect_picture", count)
    prepare_images(root, tmp_path / "s.parquet", workers=2, progress=lambda done, _: ahead.append(begun - done))
    assert max(ahead) <= 4


@pytest.mark.parametrize("name", ["samples.csv", "samples", "folder.parquet"])
def test_outputs_that_make_no_sense(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "a.png").write_bytes(encoded(quarters(), "PNG"))
    with pytest.raises(DataError, match=rf"{name}: (name the sample file|is a folder)"):
        prepare_images(tmp_path, tmp_path / name)


def test_sources_of_the_wrong_kind(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(quarters(), "PNG"))
    with pytest.raises(DataError, match=r"a\.png: is not a folder"):
        prepare_images(tmp_path / "a.png", tmp_path / "s.parquet")
    with pytest.raises(DataError, match="no such file"):
        prepare_text(tmp_path, tmp_path / "s.parquet")


def test_prompts(tmp_path: Path) -> None:
    source, output = tmp_path / "prompts.jsonl", tmp_path / "samples.parquet"
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello 写"}]
    rows = [
        {"prompt": "One plus one?"},
        {"messages": turns, "id": "chat", "meta": {"level": 2}},
        {"messages": [{"role": "user", "content": "Only this."}], "system": "Be brief."},
        {"prompt": "One plus one?"},
    ]
    source.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    summary = prepare_text(source, output)
    assert (summary.num_samples, summary.num_duplicates) == (3, 1)
    samples = list(read_samples(output))
    assert [(sample.prompt, sample.system) for sample in samples] == [
        ("One plus one?", ""),
        ("Hello 写", "Be kind."),
        ("Only this.", "Be brief."),
    ]
    assert samples[1].id == "chat"
    assert samples[1].meta == {"level": 2}
    assert samples[0].id.startswith("text-")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "needs either 'prompt' or 'messages'"),
        ({"prompt": "a", "messages": [USER]}, "has both 'messages' and 'prompt'"),
        ({"prompts": "a"}, "unknown key 'prompts', did you mean 'prompt'"),
        ({"prompt": ["a"]}, 'prompt is ["a"], need text'),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"messages": [{"role": "user", "content": None}]}, "the prompt is empty"),
        ({"messages": "a"}, "messages has the roles []"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "cut the answers off",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "prompt is [{"),
        (
            {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "a"}], "system": "y"},
            "has both",
        ),
        ({"prompt": "b", "id": "first"}, "id 'first' was given in line 1 already"),
    ],
)
def test_wrong_prompts_are_named(tmp_path: Path, row: object, message: str) -> None:
    source, output = tmp_path / "prompts.jsonl", tmp_path / "samples.parquet"
    source.write_text('{"prompt": "a", "id": "first"}\n' + json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        prepare_text(source, output)
    assert message in str(caught.value)
    assert f"{source}:2: " in str(caught.value)
    assert files(tmp_path) == ["prompts.jsonl"]


def test_no_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"p\.jsonl: holds no prompts"):
        prepare_text(tmp_path / "p.jsonl", tmp_path / "s.parquet")
