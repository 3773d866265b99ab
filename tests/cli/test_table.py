import pytest

from mmalign.cli.table import cell, result_table


@pytest.mark.parametrize(
    ("values", "count", "text"),
    [
        ([0.25], False, "0.250"),
        ([4.04], True, "4.0"),
        ([0.1, 0.2, 0.6], False, "0.300\n±0.300"),
        ([4.0, 5.0], True, "4.5\n±0.5"),
    ],
)
def test_a_cell_is_a_mean_with_its_farthest_seed(values: list[float], count: bool, text: str) -> None:
    assert cell(values, count) == text


def test_rows_are_joined_over_seeds_by_name() -> None:
    def run(seed: int, share: float) -> dict[str, object]:
        rows = [
            {"name": "before", "kind": "before", "values": {"chair_s": share}},
            {"name": "SFT", "kind": "control", "values": {"chair_s": 0.5}},
        ]
        return {"num_scenes": 9, "task": "Describe.", "seeds": [seed], "columns": ["chair_s"], "rows": rows}

    table = result_table([run(0, 0.2), run(1, 0.4)])
    assert [list(column.cells) for column in table.columns] == [["before", "(SFT)"], ["0.300\n±0.100", "0.500\n±0.000"]]
    assert table.title == "9 held-out pictures, 'Describe.', seeds 0, 1"
