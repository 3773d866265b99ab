"""The file that `write_report` writes, read as text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest

from mmalign.engine.journal import Journal, Outcome
from mmalign.errors import StoreError
from mmalign.pairs import read_pairs, write_pairs
from mmalign.report import write_report
from tests.report.synthetic_clips import DAMAGES, EVENTS, damaged, make_clip_run, opened, pair
from tests.report.synthetic_run import HOSTILE, make_run, photograph


class Page(HTMLParser):
    """Every tag with its attributes, and the visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._inside: str = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag]


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_one_file_with_everything_inside(tmp_path: Path) -> None:
    data = make_run(tmp_path / "run")
    path = write_report(tmp_path / "run", data_root=data)
    page = read(path)
    assert path == tmp_path / "run" / "report.html"
    for tag in ("img", "source", "script", "link", "iframe", "a"):
        for attrs in page.all(tag):
            for key in ("src", "srcset", "href"):
                assert attrs.get(key, "#").startswith(("data:", "#"))
    assert len(page.all("script")) == 1
    assert not any("style" in attrs or any(key.startswith("on") for key in attrs) for _, attrs in page.tags)
    assert all(attrs.get("alt") for attrs in page.all("img"))
    for said in ("It got better", "control: random signs", "Before and after", "Damaged for the rejected answer"):
        assert said in page.text
    assert sum(1 for _, attrs in page.tags if attrs.get("class") == "pair") == 40


def test_policy_allows_exactly_the_style_and_script_inside(tmp_path: Path) -> None:
    make_run(tmp_path / "run", pairs=2)
    text = write_report(tmp_path / "run").read_text(encoding="utf-8")
    policy = next(attrs["content"] for attrs in Page(text).all("meta") if "http-equiv" in attrs)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    data = make_run(tmp_path / "run", pairs=6, text=HOSTILE)
    page = read(write_report(tmp_path / "run", data_root=data))
    assert len(page.all("script")) == 1
    assert not page.all("iframe")
    assert not any(any(key.startswith("on") for key in attrs) for _, attrs in page.tags)
    assert all(attrs["src"].startswith("data:image/") for attrs in page.all("img"))
    assert "{{ 7*7 }}" in page.text
    assert page.text.count("<script>window.harmed=1</script>") > 20


@pytest.mark.parametrize(
    ("absent", "said"),
    [
        ("evaluation.json", "mmalign evaluate RECIPE"),
        ("train", "mmalign train RECIPE"),
        ("round-0", "mmalign generate RECIPE"),
        ("recipe.yaml", "There is no recipe.yaml"),
        ("environment.json", "There is no environment.json"),
        ("quarantine.jsonl", "No sample has been set aside."),
        ("data", "Picture not found: scene-000.png"),
        ("examples", "Picture not found: examples/0.png"),
    ],
)
def test_any_part_may_be_absent(tmp_path: Path, absent: str, said: str) -> None:
    data = make_run(tmp_path / "run", pairs=5)
    gone = tmp_path / "run" / absent
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    assert said in read(write_report(tmp_path / "run", data_root=data)).text


def test_an_empty_run_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    text = read(write_report(tmp_path / "run", out=tmp_path / "deep" / "page.html")).text
    assert "Not measured yet" in text
    assert "No pairs have been made yet" in text


def test_a_run_without_a_single_pair(tmp_path: Path) -> None:
    make_run(tmp_path / "run", pairs=0, quarantined=0)
    assert "The run made no pair" in read(write_report(tmp_path / "run")).text


def test_damaged_files_are_named_and_do_not_stop_the_page(tmp_path: Path) -> None:
    run = tmp_path / "run"
    make_run(run, pairs=2)
    (run / "evaluation.json").write_text("{broken")
    (run / "environment.json").write_text("[")
    (run / "recipe.yaml").write_text("a: [")
    (run / "round-0" / "pairs.parquet").write_bytes(b"PAR1 no")
    with (run / "train" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": NaN-sense}\n{"step": 61, "lo')
    text = read(write_report(run)).text
    assert "evaluation.json cannot be read" in text
    assert "round-0/pairs.parquet cannot be read" in text
    assert "1 unreadable lines of train/metrics.jsonl" in text


def test_a_changed_picture_is_not_shown_as_the_one_of_the_pair(tmp_path: Path) -> None:
    data = make_run(tmp_path / "run", pairs=3)
    photograph(3).save(data / "scene-001.png")
    text = read(write_report(tmp_path / "run", data_root=data)).text
    assert "Picture cannot be shown: scene-001.png: has changed" in text


@pytest.fixture(scope="module")
def clip_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    run = tmp_path_factory.mktemp("clips") / "run"
    return read(write_report(run, data_root=make_clip_run(run)))


def test_clips_are_strips_with_times_for_eyes_and_ears(clip_page: Page) -> None:
    strips = [attrs for _, attrs in clip_page.tags if attrs.get("class") == "frames"]
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in strips)
    # Every damaged clip stands below its source; the longer clip and the two examples add theirs.
    assert len(strips) == 2 * (len(DAMAGES) + 1) + 2 + 2
    alts = [attrs["alt"] for attrs in clip_page.all("img")]
    frames = [alt for alt in alts if alt.startswith(("Frame ", "Place "))]
    assert len(frames) > 8 * len(DAMAGES)
    assert all(re.search(r"\d\.\d+\u00a0s", alt) for alt in frames)
    assert "0.00 s 1 0.25 s 2 0.50 s 3" in clip_page.text
    assert "8 of 16 frames" in clip_page.text


def test_damages_of_clips_are_told_and_marked(clip_page: Page) -> None:
    for said in (
        "of the frame is painted over, at one place in all frames",
        "the frames are shuffled inside windows of 4",
        "all frames are shuffled",
        "the clip runs backwards",
        "they keep their times",
        "the picture stands still at frame",
        "segments, which change places",
        "blocks of frames stand from last to first",
        "blocks of frames change places",
        "from another clip (clip-1-8.mkv)",
        "every frame: gaussian noise",
        "at one place in all frames, then the frames are shuffled",
        "8 → 1 moved",
        "frozen",
        "dropped",
        "other clip",
    ):
        assert said in clip_page.text
    assert sum(name == "rect" for name, _ in clip_page.tags) == 16  # the masked clip, and the masked and shuffled one


def test_clips_that_are_gone_or_broken_are_a_line(clip_page: Page) -> None:
    assert "Clip not found: gone.mp4" in clip_page.text
    assert "Clip cannot be shown: broken.mp4: " in clip_page.text


def test_examples_of_clips_tell_what_happens_in_order(clip_page: Page) -> None:
    assert f"In the clip: {', '.join(EVENTS)}" in clip_page.text
    assert "Measured on 200 clips" in clip_page.text
    assert "Event recall" in clip_page.text
    assert "It got better" in clip_page.text


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"frames": ["examples/none.png"]}, "Frame not found: examples/none.png"),
        ({"times": [0.0]}, "Clip cannot be shown: a clip needs one time per frame"),
        ({"times": None}, "Clip cannot be shown"),
    ],
)
def test_a_damaged_example_of_a_clip_is_a_line(tmp_path: Path, changed: dict[str, object], said: str) -> None:
    data = make_clip_run(tmp_path / "run", more=0)
    path = tmp_path / "run" / "evaluation.json"
    content = json.loads(path.read_text())
    content["examples"][0] |= changed
    path.write_text(json.dumps(content))
    assert said in read(write_report(tmp_path / "run", data_root=data, max_pairs=0)).text


def test_many_clips_stay_within_the_size_of_a_page(tmp_path: Path) -> None:
    run = tmp_path / "run"
    data = make_run(run, pairs=0)
    rows = []
    for index in range(40):
        clean = opened(data, index, 16)
        rows += [
            pair(clean.ref, name, damaged(clean, name, clean, index).ref, 5 * index + place)
            for place, name in enumerate(("reverse", "freeze", "box_mask", "gaussian_noise", "global_shuffle"))
        ]
    write_pairs(run / "round-0" / "pairs.parquet", rows)
    assert write_report(run, data_root=data).stat().st_size < 15_000_000


def test_a_round_that_is_not_finished_shows_the_pairs_of_its_journal(tmp_path: Path) -> None:
    run = tmp_path / "run"
    data = make_run(run, pairs=5)
    rows = read_pairs(run / "round-0" / "pairs.parquet")
    (run / "round-0" / "pairs.parquet").unlink()
    outcomes = [
        Outcome(
            phase="pairs",
            sample_id=f"{number}-{row.sample_id}",
            status="done",
            fingerprint=0,
            made=json.dumps([row.to_row()]),
        )
        for number, row in enumerate(rows)
    ]
    survey = Outcome(phase="survey", sample_id="a", status="done", fingerprint=0, made='{"seen": 1}')
    with Journal(run / "round-0" / "journal.sqlite", {"method": "a"}) as journal:
        journal.write([*outcomes, survey])
        held = read(write_report(run, data_root=data))
        assert not [attrs for _, attrs in held.tags if attrs.get("class") == "pair"]
    for page in (held, found := read(write_report(run, data_root=data, max_pairs=3))):
        assert "Pairs are being made, or making them was interrupted" in page.text
    assert len([attrs for _, attrs in found.tags if attrs.get("class") == "pair"]) == 3
    assert "5 pairs from" in found.text
    assert "This page holds 3 of the 5 pairs" in found.text
    (run / "round-0" / "journal.sqlite").write_bytes(b"no database")
    assert "Pairs are being made" in read(write_report(run, data_root=data)).text


def test_curves_of_controls_are_drawn(tmp_path: Path) -> None:
    run = tmp_path / "run"
    make_run(run, pairs=1)
    for name in ("random_signs", "sft"):
        (run / "controls" / name).mkdir(parents=True)
    shutil.copy(run / "train" / "metrics.jsonl", run / "controls" / "random_signs")
    (run / "controls" / "sft" / "metrics.jsonl").write_text("")
    page = read(write_report(run))
    assert "Control: random signs" in page.text
    assert "Control: sft" not in page.text
    assert any(attrs["alt"].startswith("Control random signs, Loss: loss from") for attrs in page.all("img"))


def test_no_such_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such run directory"):
        write_report(tmp_path / "none")


def test_seeds_of_other_runs_join_the_table(tmp_path: Path) -> None:
    for seed in range(3):
        make_run(tmp_path / f"seed-{seed}", pairs=2, seeds=(seed,))
    runs = [tmp_path / f"seed-{seed}" for seed in range(3)]
    text = read(write_report(runs[0], other_seeds=runs)).text
    assert "went down on 3 of 3 seeds" in text
    (runs[2] / "evaluation.json").unlink()
    with pytest.raises(StoreError, match="seed-2: Nothing has been measured"):
        write_report(runs[0], other_seeds=runs)


def test_many_pairs_are_thinned_and_the_page_stays_small(tmp_path: Path) -> None:
    make_run(tmp_path / "run", pairs=10_000, pictures=250)
    path = write_report(tmp_path / "run", data_root=tmp_path / "run" / "data")
    page = read(path)
    assert "This page holds 200 of the 10,000 pairs" in page.text
    counts = [attrs["data-source"] for _, attrs in page.tags if attrs.get("class") == "pair"]
    assert len(counts) == 200
    assert sorted(counts.count(source) for source in set(counts)) == [66, 67, 67]
    assert path.stat().st_size < 15_000_000


def test_same_run_same_page(tmp_path: Path) -> None:
    make_run(tmp_path / "run", pairs=4)
    one = write_report(tmp_path / "run", out=tmp_path / "one.html").read_bytes()
    assert one == write_report(tmp_path / "run", out=tmp_path / "two.html").read_bytes()


def test_colours_have_enough_contrast() -> None:
    """WCAG AA: at least 4.5 to 1 for every text on every ground it stands on, light and dark."""
    style = (resources.files("mmalign.report") / "templates" / "page.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in style.split("@media")[:2])

    def brightness(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    on = {
        "ink": ("paper", "card", "tint", "good-back", "bad-back"),
        "soft": ("paper", "card", "tint"),
        "accent": ("paper", "card", "tint", "good-back"),
        "good": ("card", "good-back"),
        "bad": ("card", "bad-back"),
    }
    for theme in (light, dark):
        for text, grounds in on.items():
            for ground in grounds:
                one, other = sorted((brightness(theme[text]), brightness(theme[ground])))
                assert (other + 0.05) / (one + 0.05) >= 4.5, (text, ground)


def test_plots_say_in_words_what_they_show(tmp_path: Path) -> None:
    make_run(tmp_path / "run", pairs=1)
    page = read(write_report(tmp_path / "run"))
    alts = {attrs["alt"].split(":")[0]: attrs["alt"] for attrs in page.all("img")}
    assert re.search(r"loss from [\d.]+ to [\d.]+, lowest [\d.]+, highest [\d.]+; steps 1 to 60", alts["Loss"])
    assert {"Learning rate", "Log-probability change since the start", "Gradient norm"} <= set(alts)
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert facts["torch"] in page.text
