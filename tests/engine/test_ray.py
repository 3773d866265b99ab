"""The same on Ray: a cluster of two nodes on this machine, of which actors and a node are killed."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmalign.engine.crew import Crew
from mmalign.engine.outpost import Opener
from mmalign.engine.rays import RayCluster
from mmalign.engine.remote import RemoteCrew
from mmalign.errors import ModelError, RecipeError, StoreError
from mmalign.methods import find_method
from mmalign.pairs import read_pairs
from mmalign.types import MediaRef, SampleRow
from tests.engine import crews
from tests.engine.cases import make, pair_bytes, sample_rows
from tests.engine.crews import ALL, Hanging, Poisoned, Slow, Then, scripted, with_crew
from tests.engine.test_workers import OWN

ROOT = Path(__file__).resolve().parents[2]
NUM = 80

# Ray starts processes that it leaves to themselves, and its own code warns.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        logging.getLogger("ray").setLevel(logging.ERROR)
        # A dead node is noticed soon, one that is slow is not taken for dead.
        health = {"initial_delay_ms": 500, "period_ms": 500, "timeout_ms": 30_000}
        config = {f"health_check_{name}": value for name, value in health.items()}
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": config})
        try:
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


def on_ray(cluster: Any, num_workers: int = 2, opener: Opener = scripted, **more: Any) -> Crew:
    site = RayCluster(cluster.address, **{"cpus": 1.0, "gpus": None, "wants_gpu": True, **more})
    return RemoteCrew(site, opener, num_workers)


def test_actors_make_the_pairs_that_this_process_makes(tmp_path: Path, cluster: Any) -> None:
    node = cluster.add_node(num_cpus=2)
    for name in ("choosy", "learned"):
        here = make(tmp_path / f"here {name}", sample_rows(NUM), ALL[name]())
        there = with_crew(tmp_path / name, sample_rows(NUM), ALL[name](), on_ray(cluster, 3))
        here.seconds = there.seconds = 0
        assert there == here
        assert pair_bytes(tmp_path / name) == pair_bytes(tmp_path / f"here {name}")
    cluster.remove_node(node)
    cluster.wait_for_nodes()


def test_an_actor_and_a_node_die(tmp_path: Path, cluster: Any, caplog: pytest.LogCaptureFixture) -> None:
    node = cluster.add_node(num_cpus=1)
    rows = sample_rows(NUM)
    once = (str(tmp_path / "sample-11.once"), str(tmp_path / "sample-40.once"))
    then = Then({25: lambda: cluster.remove_node(node, allow_graceful=False)})
    made = with_crew(tmp_path / "run", rows, Slow(once=once), on_ray(cluster), progress=then)
    make(tmp_path / "unbroken", rows, Slow())
    cluster.wait_for_nodes()  # until Ray knows of the death
    # Of the node's actor, too, Ray may learn first that its process ended.
    assert 2 <= caplog.text.count("its process ended") + caplog.text.count("its machine died or does not answer") <= 3
    assert "died" not in str(made.quarantined)
    assert made.num_samples == NUM
    assert content(tmp_path / "run") == content(tmp_path / "unbroken")


def content(path: Path) -> list[Any]:
    return [row.to_row() for row in read_pairs(path / "round-0" / "pairs.parquet")]


def test_a_sample_that_kills_its_actor_is_quarantined_alone(tmp_path: Path, cluster: Any) -> None:
    poisoned = Poisoned(poison=("sample-7",))
    made = with_crew(tmp_path, sample_rows(20), poisoned, on_ray(cluster, 1), concurrency=16)
    told = {reason: num for reason, num in made.quarantined.items() if "died" in reason}
    assert told == {"the worker that had this sample died 3 times (its process ended)": 1}
    assert made.num_samples == 20


def test_an_actor_that_hangs_is_replaced(tmp_path: Path, cluster: Any) -> None:
    site = RayCluster(cluster.address, cpus=1.0, gpus=None, wants_gpu=False)
    crew = RemoteCrew(site, scripted, 1, hung_s=1.0)
    made = with_crew(tmp_path, sample_rows(20), Hanging(hang="sample-11"), crew, concurrency=4)
    told = {reason: num for reason, num in made.quarantined.items() if "died" in reason}
    how = "it hung: none of its samples was finished for 1 s"
    assert told == {f"the worker that had this sample died 3 times ({how})": 1}
    assert made.num_samples == 20


def test_a_method_in_a_file_of_its_own(tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    own = find_method("mine.py:Own")()
    with_crew(tmp_path / "there", sample_rows(NUM), own, on_ray(cluster, 1))
    make(tmp_path / "here", sample_rows(NUM), own)
    assert pair_bytes(tmp_path / "there") == pair_bytes(tmp_path / "here")


def test_what_is_wrong_is_told_in_one_line(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def told(crew: Crew, **more: Any) -> str:
        rows = [SampleRow("a", (MediaRef("a.png"),))]
        with pytest.raises((RecipeError, ModelError, StoreError)) as caught:
            with_crew(tmp_path / "run", rows, Slow(), crew, **more)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert told(on_ray(cluster, opener=crews.unloadable)) == "model.name 'no/model': there is no such folder"
    assert "does not see this data folder" in told(on_ray(cluster), data_root=tmp_path / "not there")
    assert "the Ray cluster has room for 1 of 2 workers (1 CPUs and 0 GPUs each)" in caplog.text
    assert told(on_ray(cluster, cpus=3.0)) == (
        "generate.cpus_per_worker, gpus_per_worker: each worker needs 3 CPUs and 0 GPUs, and no node of the Ray "
        "cluster has both (the largest have 1 CPUs, 0 GPUs)"
    )
    assert "needs 1 CPUs and 2 GPUs" in told(on_ray(cluster, gpus=2.0))
    with pytest.raises(RecipeError, match=r"generate.ray_address: got ray://head:10001; give host:port, or auto"):
        RayCluster("ray://head:10001", cpus=1, gpus=None, wants_gpu=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert told(on_ray(cluster)).startswith('engine: ray is not installed here; pip install "mmalign[ray]"')


def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    site = RayCluster("127.0.0.1:1", cpus=1, gpus=None, wants_gpu=False)
    with pytest.raises(RecipeError, match=r"generate.ray_address: no connection to the Ray cluster 127.0.0.1:1"):
        with_crew(tmp_path, sample_rows(3), Slow(), RemoteCrew(site, scripted, 1))


def test_how_full_a_disk_is_does_not_matter_to_a_cluster_started_here(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ray tells of a disk that is nearly full ten seconds after its start, later than a short run ends.
    ray = pytest.importorskip("ray")
    asked: list[dict[str, Any]] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **given: asked.append(given))
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 1.0}}])
    monkeypatch.setattr(ray, "shutdown", lambda: None)

    async def there_and_back(address: str | None) -> None:
        site = RayCluster(address, cpus=1, gpus=None, wants_gpu=False)
        await site.open(1, 1)
        await site.close()

    for address in (None, "auto"):
        asyncio.run(there_and_back(address))
    settings = [(given["address"], given.get("_system_config")) for given in asked]
    assert settings == [("local", {"local_fs_capacity_threshold": 1.0}), ("auto", None)]
