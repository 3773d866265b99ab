import subprocess
import sys
from pathlib import Path

import pytest


def test_importing_mmalign_loads_nothing_heavy() -> None:
    heavy = "torch", "transformers", "matplotlib", "pyarrow", "PIL", "numpy", "jsonargparse"
    code = f"import sys, mmalign; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


def test_every_public_name_is_there() -> None:
    import mmalign

    for name in mmalign.__all__:
        assert getattr(mmalign, name) is not None


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ((), "no such recipe"),
        (("--train.lerning_rate", "1"), "train.lerning_rate: unknown key, did you mean train.learning_rate?"),
        (("--method.name", "stick"), "stick"),
    ],
)
def test_a_mistake_in_a_recipe_is_told_before_torch_is_loaded(
    flags: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    if flags:
        recipe.write_text("method: {name: stic}\nobjective: {name: dpo}\n", encoding="utf-8")
    argv = ["train", str(recipe), *flags]
    code = f"import sys; from mmalign.cli import main; print(main({argv!r}), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 False"
    assert told in done.stderr
