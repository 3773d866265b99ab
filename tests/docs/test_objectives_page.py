"""The page of the objectives is made from the code, and its recipe lines and example rows are right."""

import json
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from mmalign.objectives import OBJECTIVES
from mmalign.objectives.carried import MADE, SIDES, VALUES, example, told
from mmalign.pairs import PairRow, read_pairs
from mmalign.sides import read_sides, read_values
from mmalign.train.config import TrainConfig
from mmalign.train.data.derived import DERIVED
from mmalign.train.data.needs import prepared
from tests.docs.test_readme import build

__all__ = ["build"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "objectives.md"


def blocks() -> dict[str, str]:
    """What the page says of each objective."""
    parts = re.split(r"^\*\*`(\w+)`\*\* ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_page_is_what_docs_build_writes(build: ModuleType) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert build.built(text) == text, "run `python docs/build.py`"


def test_every_recipe_line_makes_the_objective_with_its_defaults() -> None:
    told_of = blocks()
    assert set(told_of) == set(OBJECTIVES)
    for name, block in told_of.items():
        [line] = re.findall(r"^    (objective: .*)$", block, re.MULTILINE)
        given = yaml.safe_load(line)["objective"]
        assert given.pop("name") == name
        made = OBJECTIVES[name](**{key: tuple(v) if isinstance(v, list) else v for key, v in given.items()})
        assert made == OBJECTIVES[name]()


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_an_example_row_carries_what_the_objective_needs(name: str) -> None:
    objective = OBJECTIVES[name]()
    row = example(objective)
    for need in objective.needs:
        kind, _, own = need.partition(":")
        if kind == "side":
            assert own in SIDES
            assert row["sides"][own]
        elif kind == "value":
            assert own in VALUES
            assert (row if own == "gap" else row["values"])[own] is not None
        elif kind == "changed":
            assert row["chosen"][slice(*row["chosen_spans"][0])] == "Two"
            assert row["rejected"][slice(*row["rejected_spans"][0])] == "Three"
    columns = ("side:", "value:", "changed", "logits:no_history")
    carried = PairRow(
        id="a",
        sample_id="a",
        method="test",
        context=row["context"],
        chosen=row["chosen"],
        rejected=row["rejected"],
        gap=row.get("gap"),
        values=read_values(row.get("values", {})),
        sides=read_sides(row.get("sides", {})),
    )
    given = {need.partition(":")[2] for need in objective.needs if need.partition(":")[0] in ("logits", "tokens")}
    prepared([carried], objective, TrainConfig(models=dict.fromkeys(sorted(given - {"policy", "old_logps"}), "tiny")))
    assert len(told(objective)) == sum(need.startswith(columns) for need in objective.needs)
    found = re.findall(r"```json\n(.*?)```", blocks()[name], re.DOTALL)
    plain = {key: value for key, value in row.items() if key not in ("context", "chosen", "rejected")}
    assert [json.loads(text) for text in found] == ([json.loads(json.dumps(plain))] if plain else [])


def test_what_is_made_from_the_pairs_is_said() -> None:
    assert set(DERIVED) == MADE


def test_the_code_on_the_page_writes_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(from pathlib.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code, "page", "exec"), {})
    [row] = read_pairs(tmp_path / "runs" / "boats" / "round-0" / "pairs.parquet")
    assert row.values == {"scores": (2.0, 0.5)}
