"""The pairs of a recipe: made here or by workers, or taken from a file."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from pathlib import Path

from mmalign.engine import RunDir, Summary, generate_async, progress_on
from mmalign.engine.crew import Crew
from mmalign.engine.models import open_on_machine, open_on_node, wants_gpu
from mmalign.engine.processes import Processes
from mmalign.engine.rays import RayCluster
from mmalign.engine.remote import RemoteCrew
from mmalign.errors import StoreError
from mmalign.lm.opening import open_lm
from mmalign.pairs import read_pairs, write_pairs
from mmalign.pipeline.source import limits_of, root_of, source_of
from mmalign.pipeline.training import has_begun
from mmalign.recipe.schema import Recipe
from mmalign.recorded import with_sha256

log = logging.getLogger("mmalign")


def make_pairs(recipe: Recipe, run: RunDir) -> Summary:
    """Make the pairs of the recipe, or those that are still missing; take those of `data.pairs` as they are."""
    if recipe.data.pairs is not None:
        return take_pairs(recipe.data.pairs, recipe.data.limit, root_of(recipe), run)
    source = source_of(recipe)
    crew = crew_of(recipe)
    lm = crew or open_lm(recipe.model, batch_size=recipe.generate.batch_size, server=recipe.server)

    async def work() -> Summary:
        try:
            return await generate_async(
                recipe.method,
                source.rows,
                lm,
                run=run,
                data_root=source.root,
                seed=recipe.seed,
                limits=limits_of(recipe),
                concurrency=recipe.generate.concurrency,
                max_bad_share=recipe.generate.max_bad_share,
                retry_quarantined=recipe.generate.retry_quarantined,
                progress=progress_on(),
                total=source.total,
            )
        finally:
            if not isinstance(lm, Crew):
                await lm.close()

    return asyncio.run(work())


def crew_of(recipe: Recipe) -> Crew | None:
    """The workers of a recipe that has more than this process."""
    generate, model, server = recipe.generate, recipe.model, recipe.server
    if recipe.engine == "ray":
        cluster = RayCluster(
            generate.ray_address,
            cpus=generate.cpus_per_worker or 1.0,
            gpus=generate.gpus_per_worker,
            wants_gpu=wants_gpu(model, server),
        )
        opener = partial(open_on_node, model=model, batch_size=generate.batch_size, server=server)
        return RemoteCrew(cluster, opener, generate.workers, hung_s=generate.hung_s)
    for key in ("ray_address", "gpus_per_worker"):
        if getattr(generate, key) is not None:
            log.warning("generate.%s counts with engine: ray only; this run is made on this machine", key)
    if generate.workers == 1:
        return None
    opener = partial(open_on_machine, model=model, batch_size=generate.batch_size, server=server)
    return RemoteCrew(Processes(generate.cpus_per_worker), opener, generate.workers, hung_s=generate.hung_s)


def take_pairs(path: Path, limit: int | None, root: Path, run: RunDir) -> Summary:
    """Put the pairs of a file into the run, with the sums of their media below `root`.

    Raises StoreError for a file that is no pair file, and for other pairs than those that a training was begun with.
    """
    rows = with_sha256(read_pairs(path)[:limit], root)
    if has_begun(run) and rows != read_pairs(run.pairs_path()):
        raise StoreError(
            f"{run.path}: its training was begun with other pairs than those of {path}; name another output"
        )
    run.round_path(0)
    write_pairs(run.pairs_path(), rows)
    return Summary(done=len({row.sample_id for row in rows}), pairs=len(rows))
