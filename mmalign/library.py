"""The loop as four functions: load a model, make pairs, align, compare. The command line does nothing more."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from mmalign.engine import RunDir, generate_async
from mmalign.errors import RecipeError, StoreError
from mmalign.evaluate.answers import describe
from mmalign.evaluate.descriptions import measure, read_scene
from mmalign.evaluate.items import scene_items
from mmalign.evaluate.table import FIRST_SEED
from mmalign.lm.load import Loaded, load_model
from mmalign.lm.local import LocalLM
from mmalign.lm.opening import open_lm
from mmalign.lm.protocol import LM
from mmalign.lm.spec import ModelSpec, ServerSpec
from mmalign.methods import find_method
from mmalign.objectives import DPO, Objective
from mmalign.pairs import PairRow, read_pairs
from mmalign.samples import data_folder, read_samples
from mmalign.text.prompts import DETAIL
from mmalign.train.config import TrainConfig
from mmalign.train.stages import train_pairs

if TYPE_CHECKING:
    from mmalign.evaluate.items import Item


@dataclass(frozen=True)
class Model:
    """A model by its spec; weights are loaded when they are first needed."""

    spec: ModelSpec

    @cached_property
    def loaded(self) -> Loaded:
        return load_model(self.spec)


@dataclass(frozen=True)
class ServedModel:
    """A model that a server answers for: it makes pairs, but is not here to be trained."""

    name: str
    server: ServerSpec


@dataclass(frozen=True)
class Pairs(Sequence[PairRow]):
    """Pairs, the folder that their media paths start from, and the run directory that holds them."""

    rows: list[PairRow] = field(repr=False)
    root: Path
    run: Path

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[PairRow]:
        return iter(self.rows)

    @overload
    def __getitem__(self, index: int) -> PairRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[PairRow]: ...
    def __getitem__(self, index: int | slice) -> PairRow | list[PairRow]:
        return self.rows[index]


def load(name: str = "tiny", **spec: Any) -> Model:
    """A model: "tiny", a folder, or a hub name. `spec` are the other fields of `ModelSpec`, such as device or dtype.

    Raises ModelError, in one line, when it cannot be loaded.
    """
    model = Model(ModelSpec(name=name, **spec))
    _ = model.loaded
    return model


def served(name: str, url: str, **spec: Any) -> ServedModel:
    """A model behind an OpenAI-compatible server. `spec` are the other fields of `ServerSpec`, such as kind.

    Raises RecipeError for an address or a setting that is wrong; the server is first asked when pairs are made.
    """
    try:
        return ServedModel(name, ServerSpec(url=url, **spec))
    except ValueError as error:
        raise RecipeError(f"server.{error}") from None


def make_pairs(
    method: str | object,
    source: str | Path,
    model: Model | ServedModel,
    *,
    run: str | Path,
    seed: int = 0,
    **parameters: Any,
) -> Pairs:
    """Let the model make preference pairs about a folder of pictures or a sample file.

    Args:
        method: A name (then `parameters` are its fields), "file.py:Class", or an instance of a method class.
        source: A folder of pictures, or a file that `mmalign prepare` or you wrote.
        model: Answers and judges: what `load` or `served` gave.
        run: The run directory. Called again after an interruption, the same call goes on where it was.
        seed: Every random choice follows from it.
        parameters: Fields of the method.

    Raises StoreError when `run` belongs to other settings; bad samples are in its `quarantine.jsonl`.
    """
    source = Path(source)
    root = data_folder(source)
    made = find_method(method)(**parameters) if isinstance(method, str) else method
    with RunDir(Path(run)) as directory:
        data = {"images" if source.is_dir() else "samples": str(source.resolve())}
        named: Any = type(made)
        fields = {"name": named.method_name, **{f.name: getattr(made, f.name) for f in dataclasses.fields(named)}}
        lm = _open(model)
        recipe = {"seed": seed, "data": data, "model": {"name": lm.name}, "method": fields}
        if isinstance(model, ServedModel):
            recipe["server"] = {"kind": model.server.kind, "clips": model.server.clips}
        asyncio.run(_generate(made, source, root, lm, directory, recipe))
        return Pairs(read_pairs(directory.pairs_path()), root, Path(run))


def _open(model: Model | ServedModel) -> LM:
    if isinstance(model, ServedModel):
        return open_lm(ModelSpec(name=model.name), batch_size=1, server=model.server)
    return LocalLM(model.loaded)


async def _generate(method: Any, source: Path, root: Path, lm: LM, run: RunDir, recipe: dict[str, Any]) -> None:
    try:
        run.begin(recipe)
        await generate_async(method, read_samples(source), lm, run=run, data_root=root, seed=recipe["seed"])
    finally:
        await lm.close()


def align(
    model: Model, pairs: Pairs, *, objective: Objective | None = None, output: str | Path | None = None, **settings: Any
) -> Model:
    """Train a copy of the model on pairs; the given model stays as it is.

    Args:
        model: Where training starts.
        pairs: What `make_pairs` gave, or `Pairs(read_pairs(file), root, run)` of a file of your own.
        objective: What is minimised; DPO with beta .1 when not given.
        output: Folder of checkpoints and result, one for each combination of settings; `train` in the run by default.
        settings: Fields of `TrainConfig`.

    Raises StoreError when there are no pairs, TrainError when the folder holds a training with other settings.
    """
    if not pairs:
        raise StoreError(f"{pairs.run}: the run made no pairs, so there is nothing to train on")
    config = TrainConfig(**settings)
    result = train_pairs(
        load_model(model.spec),
        pairs.rows,
        objective or DPO(),
        config,
        data_root=pairs.root,
        output=pairs.run / "train" if output is None else Path(output),
    )
    path = str(result.path)
    whole = result.kind == "model"  # an adapter that the model had is merged into it
    return Model(replace(model.spec, name=path, adapter=None) if whole else replace(model.spec, adapter=path))


def compare(*models: Model, scenes: int = 100, prompt: str = DETAIL[0], seed: int = 0) -> list[dict[str, float]]:
    """CHAIR_i, CHAIR_s, recall, colour and place accuracy of each model's descriptions of the same held-out scenes."""
    items = scene_items(scenes, seed=FIRST_SEED + seed, split="test")
    return [asyncio.run(_measured(model, items, prompt)) for model in models]


async def _measured(model: Model, items: Sequence[Item], prompt: str) -> dict[str, float]:
    async with LocalLM(model.loaded) as lm:
        return measure(await describe(lm, items, prompt, 256), items, read_scene)
