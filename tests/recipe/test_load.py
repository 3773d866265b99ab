from pathlib import Path

import pytest

from mmalign.errors import RecipeError
from mmalign.recipe.load import load_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(
    [
        *ROOT.glob("recipes/image/*.yaml"),
        *ROOT.glob("recipes/video/*.yaml"),
        *ROOT.glob("mmalign/tiny/recipes/**/*.yaml"),
    ]
)
GOOD = """
seed: 3
method: {name: stic, p_bad_prompt: 0.25}
objective: {name: dpo, beta: 0.2}
data: {scenes: 5}
train: {lora: {rank: 4}, epochs: 2}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD, encoding="utf-8")
    return path


def test_there_are_recipes_to_test() -> None:
    assert len(RECIPES) >= 6


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_of_the_repository_loads(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.resolved["method"]["name"] == {"dpo": "rrpo"}.get(path.stem, path.stem)
    assert recipe.data.scenes + recipe.data.clips > 0


def test_file_then_flags_then_defaults(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["--objective.beta", "0.5", "--train.lora.rank=8", "--output", "runs/x"])
    assert loaded.seed == 3
    assert loaded.method.p_bad_prompt == 0.25
    assert loaded.objective.beta == 0.5
    assert loaded.train.lora is not None
    assert loaded.train.lora.rank == 8
    assert loaded.train.epochs == 2
    assert loaded.output == Path("runs/x")
    assert loaded.resolved["train"]["lora"]["rank"] == 8
    assert loaded.resolved["generate"]["batch_size"] == 16


def test_full_training_by_flag(recipe: Path) -> None:
    assert load_recipe(recipe, ["--train.lora", "null"]).train.lora is None


def test_a_source_given_as_a_flag_replaces_that_of_the_file(recipe: Path, tmp_path: Path) -> None:
    data = load_recipe(recipe, ["--data.images", str(tmp_path)]).data
    assert (data.images, data.scenes) == (tmp_path, 0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train.epoch", "2"], "command line: train.epoch: unknown key, did you mean train.epochs?"),
        (["--metod.name", "stic"], "command line: metod.name: unknown key, did you mean method.name?"),
        (["--train.lora.rnk", "2"], "command line: train.lora.rnk: unknown key, did you mean train.lora.rank?"),
        (["--train.epochs", "many"], "train.epochs"),
        (["--train.epochs", "0"], "train.epochs is 0; it must be 1 or more"),
        (["--seed"], "command line: --seed: the value is missing"),
        (["seed"], "is no flag"),
        (["--method.name", "stik"], "stic"),
        (["--objective.name", "dop"], "dpo"),
        (["--data.images", "a", "--data.samples", "b"], "not both"),
        (["--objective.beta", "-1"], "beta"),
        (["--data.scenes", "-1"], "data.scenes is -1; it must be 0 or more"),
        (["--data.limit", "0"], "data.limit is 0; it must be 1 or more"),
        (["--evaluate.split", "pairs"], "evaluate.split"),
        (["--evaluate.scenes", "-3"], "evaluate.scenes is -3; it must be 0 or more"),
        (["--generate.max_bad_share", "2"], "generate.max_bad_share is 2.0; it must be between 0 and 1"),
        (["--generate.batch_size", "0"], "generate.batch_size is 0; it must be 1 or more"),
        (["--train.lora.dropout", "1.5"], "train.lora.dropout is 1.5; it must be 0 or more and less than 1"),
    ],
)
def test_wrong_flags_end_in_one_line_with_key_and_remedy(recipe: Path, flags: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, flags)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "method: {name: stic, p_bad: 1}\nobjective: {name: dpo}",
            "method.p_bad: unknown key, did you mean method.p_bad_prompt?",
        ),
        (
            "method: {name: stic}\nobjective: {name: dpo}\ntrain: {lora: {rnk: 1}}",
            "train.lora.rnk: unknown key, did you mean",
        ),
        ("method: {name: stic}\nobjective: {name: dpo}\ntrain: 3", "train: must be a mapping"),
        ("objective: {name: dpo}", "method.name: missing"),
        ("method: {name: stic}\nobjective: {name: dpo}\ndata: {scenes: 5, images: x}", "give one of images, scenes"),
        ("method: {name: stic}\nobjective: {name: dpo}\ndata: {images: [a]}", "data.images: wrong value"),
        ("method: [", "not valid YAML"),
        ("- a", "a recipe is a mapping"),
        ("method: {name: stic}\nobjective: {name: dpo}\nseed: x", "seed"),
    ],
)
def test_wrong_files_end_in_one_line_that_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_objective_that_cannot_be_fed_is_refused_before_any_work(recipe: Path) -> None:
    message = r"^objective: objective lipo needs what these pairs and this trainer do not give: .*side:answers"
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe, ["--objective.name", "lipo"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no\.yaml: no such recipe"):
        load_recipe(tmp_path / "no.yaml")


def test_what_is_resolved_is_a_recipe_itself(recipe: Path, tmp_path: Path) -> None:
    import yaml

    first = load_recipe(recipe)
    again = tmp_path / "resolved.yaml"
    again.write_text(yaml.safe_dump(first.resolved), encoding="utf-8")
    assert load_recipe(again).resolved == first.resolved


def test_one_seed_rules_all_unless_told_otherwise(recipe: Path) -> None:
    assert load_recipe(recipe).train.seed == 3
    assert load_recipe(recipe, ["--seed", "5"]).train.seed == 5
    assert load_recipe(recipe, ["--seed", "5", "--train.seed", "7"]).train.seed == 7


@pytest.mark.parametrize("key", ["images", "videos", "samples"])
def test_data_are_named_by_absolute_paths(
    key: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "media").mkdir()
    monkeypatch.chdir(tmp_path)
    loaded = load_recipe(recipe, [f"--data.{key}", "media"])
    assert getattr(loaded.data, key) == tmp_path / "media"
    assert loaded.resolved["data"][key] == str(tmp_path / "media")
