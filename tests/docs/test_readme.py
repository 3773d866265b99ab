"""What the README and the method pages claim is made from the repository, so that it cannot rot."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from mmalign.methods import list_methods

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "methods").glob("*.md"))]
HEADINGS = ("Idea", "Usage", "Parameters", "Departures from the paper", "Measured result", "Source")


@pytest.fixture(scope="module")
def build() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_what_docs_build_writes(build: ModuleType, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert build.built(text) == text, "run `python docs/build.py`"


def test_every_method_has_a_page_a_recipe_and_a_line_in_the_readme() -> None:
    for info in list_methods():
        page = ROOT / "docs" / "methods" / f"{info.name}.md"
        text = page.read_text(encoding="utf-8")
        assert [f"## {heading}" in text for heading in HEADINGS] == [True] * len(HEADINGS), page
        assert (ROOT / "recipes" / info.media / f"{info.name}.yaml").is_file()
        assert f"[{info.name}](docs/methods/{info.name}.md)" in README


def test_files_that_the_readme_and_the_pages_name_exist() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([\w./-]+)\)", text):
            assert (page.parent / target).exists() or (ROOT / target).exists(), f"{page.name}: {target}"
        for recipe in re.findall(r"recipes/\w+/\w+\.yaml", text):
            assert (ROOT / recipe).is_file(), f"{page.name}: {recipe}"


def test_make_targets_that_the_readme_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_the_documented_result_meets_its_bar(build: ModuleType) -> None:
    # The default method must at least halve CHAIR_s at a recall loss of at most .05, on each of 3 seeds.
    evaluations = build.stored("self_consistency")
    assert len(evaluations) >= 3
    for evaluation in evaluations:
        values = {row["name"]: row["values"] for row in evaluation["rows"]}
        assert evaluation["split"] == "test"
        assert values["after"]["chair_s"] <= values["before"]["chair_s"] / 2
        assert values["before"]["recall"] - values["after"]["recall"] <= 0.05
        assert values["random signs"]["chair_s"] > values["after"]["chair_s"] * 2
