"""The lists are readable: nothing is broken in two that would fit, whatever the width."""

from __future__ import annotations

import re

import pytest

from mmalign.cli import main
from mmalign.objectives import FAMILIES, OBJECTIVES, describe_objective


def test_every_objective_has_one_family() -> None:
    names = [name for family in FAMILIES.values() for name in family]
    assert sorted(names) == sorted(OBJECTIVES)


@pytest.mark.parametrize("width", [60, 100, 160])
def test_objectives_are_told_in_full(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["list", "objectives"]) == 0
    out = capsys.readouterr().out
    assert all(len(line) <= width for line in out.splitlines())
    joined = " ".join(out.split())
    for name, kind in OBJECTIVES.items():
        info = describe_objective(kind)
        assert re.search(rf"^ {name} ", out, re.MULTILINE)
        for text in (info.formula, info.source, f"needs {', '.join(info.needs)}"):
            assert " ".join(text.split()) in joined
        for parameter, _ in info.parameters:
            assert f" {parameter}=" in joined


def test_formulas_have_most_of_the_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    main(["list", "objectives"])
    formula = describe_objective(OBJECTIVES["rrpo"]).formula
    assert any(formula in line for line in capsys.readouterr().out.splitlines())
