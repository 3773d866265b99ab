"""`mmalign generate` with a server in place of a model: pairs, Ctrl-C, a server that dies, and no word of the key."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import mmalign
from mmalign.cli import main
from mmalign.errors import RecipeError, StoreError
from mmalign.pairs import PairRow, read_pairs
from mmalign.tiny import draw_scene, scenes
from tests.lm.unruly import Reply, Request, Unruly, hashed

REPO = Path(__file__).parents[2]
RECIPE = "recipes/image/stic.yaml"
NUM = 12
KEY = "sk-never-to-be-seen-0987654321"
QUICK = ["--server.retries", "1", "--server.backoff_s", "0.01", "--server.timeout_s", "60"]


def generate(url: str, run: Path, *flags: str) -> int:
    words = ["generate", str(REPO / RECIPE), "--data.scenes", str(NUM), "--output", str(run), "--server.url", url]
    return main([*words, "--server.model", "served", "--server.kind", "vllm", *QUICK, *flags])


def made(run: Path) -> list[PairRow]:
    assert (run / "quarantine.jsonl").read_text() == ""
    return read_pairs(run / "round-0" / "pairs.parquet")


@contextmanager
def process(port: int, *words: str) -> Iterator[str]:
    """The server as a process of its own; yields where it answers."""
    command = [sys.executable, str(REPO / "tests/lm/unruly.py"), str(port), *words]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPO)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.communicate()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> list[PairRow]:
    run = tmp_path_factory.mktemp("unbroken") / "run"
    with Unruly(lambda request, number: hashed(request)) as server:
        assert generate(server.url, run) == 0
        pictures = {request.text for request in server.asked if "image_url" in request.text}
    assert len(pictures) > NUM  # damaged pictures were sent as other pictures
    return made(run)


def test_pairs_come_out(unbroken: list[PairRow]) -> None:
    assert len({row.sample_id for row in unbroken}) == NUM
    assert all(row.chosen != row.rejected for row in unbroken)


def test_a_server_that_dies_and_comes_back(
    unbroken: list[PairRow], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    with process(port, "--die-after", "15") as url:
        assert generate(url, tmp_path / "run") == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith(f"mmalign: server.url {url}: does not answer (no connection")
    assert told.endswith("run the same command again to go on")
    assert not (tmp_path / "run/round-0/pairs.parquet").exists()
    with process(port) as url:
        assert generate(url, tmp_path / "run") == 0
    assert made(tmp_path / "run") == unbroken


def test_a_run_moves_to_another_address(unbroken: list[PairRow], tmp_path: Path) -> None:
    with process(free_port(), "--die-after", "15") as url:
        assert generate(url, tmp_path / "run", "--server.max_in_flight", "2") == 2
    with Unruly(lambda request, number: hashed(request)) as server:
        assert generate(server.url, tmp_path / "run", "--server.max_in_flight", "5") == 0
        assert server.most <= 5
        assert len(server.asked) < 2 * NUM  # what was done is not asked again
    assert made(tmp_path / "run") == unbroken


def test_ctrl_c_does_not_wait_for_the_server(
    unbroken: list[PairRow], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def behave(request: Request, number: int) -> Reply:
        if number == 15:
            os.kill(os.getpid(), signal.SIGINT)
        return hashed(request) if number < 15 else Reply(hangs=True)

    with Unruly(behave) as server:
        assert generate(server.url, tmp_path / "run", "--server.timeout_s", "900") == 130
        assert "run the same command again to go on" in capsys.readouterr().err
        server.behave = lambda request, number: hashed(request)
        assert generate(server.url, tmp_path / "run", "--server.timeout_s", "61") == 0
    assert made(tmp_path / "run") == unbroken


def test_the_key_is_stored_and_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MMALIGN_TEST_KEY", KEY)
    flags = ("--server.api_key_env", "MMALIGN_TEST_KEY", "--data.limit", "3")
    echo = Reply({"error": {"message": f"wrong key: {KEY}"}}, 401)
    with Unruly(lambda request, number: hashed(request) if number < 4 else echo) as server:
        assert generate(server.url, tmp_path / "run", *flags, "--server.max_in_flight", "1") == 2
        refused = Reply({"error": KEY}, 422)
        server.behave = lambda request, number: refused if number == 7 and not request.is_trial else hashed(request)
        assert generate(server.url, tmp_path / "run", *flags) == 0
        assert all(request.headers["authorization"] == f"Bearer {KEY}" for request in server.requests)
    printed = capfd.readouterr()
    assert "wrong key: ***); is the key in $MMALIGN_TEST_KEY right?" in printed.err
    assert KEY not in printed.err + printed.out
    [quarantined] = map(json.loads, (tmp_path / "run/quarantine.jsonl").read_text().splitlines())
    assert quarantined["reason"] == "the server refuses this request and takes others: HTTP 422: ***"
    stored = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(stored) > 5
    assert not [path for path in stored if KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--server.url", "ftp://host/v1"], "server.url: give http://HOST:PORT/v1"),
        (["--server.url", f"https://me:{KEY}@host/v1"], "server.url: give http://HOST:PORT/v1"),
        (["--server.url", f"https://host/v1?key={KEY}"], "server.url: give http://HOST:PORT/v1"),
        (["--server.api_key_env", KEY], "server.api_key_env: give the name of an environment variable"),
        (["--server.api_key_env", "MMALIGN_NO_SUCH_KEY"], "the variable MMALIGN_NO_SUCH_KEY holds no key"),
        (["--server.retries", "-1"], "server.retries is -1"),
        (["--server.max_in_flight", "0"], "server.max_in_flight is 0"),
        (["--server.timeout_s", ".inf"], "server.timeout_s"),
        (["--server.kind", "tgi"], "server.kind"),
        (["--server.uri", "x"], "did you mean server.url?"),
    ],
)
def test_what_is_wrong_with_the_section(
    flags: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("http://127.0.0.1:9/v1", tmp_path / "run", *flags) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.strip().splitlines()) == 1
    assert KEY not in error


def test_another_model_is_not_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Unruly(lambda request, number: hashed(request)) as server:
        assert generate(server.url, tmp_path / "run", "--data.limit", "2") == 0
        assert generate(server.url, tmp_path / "run", "--data.limit", "2", "--server.model", "other") == 2
    assert 'server.model: "served" -> "other"' in capsys.readouterr().err


def test_a_run_of_a_server_is_not_gone_on_with_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(REPO / RECIPE), "--data.scenes", "2", "--output", str(tmp_path / "run")]
    with Unruly(lambda request, number: hashed(request)) as server:
        assert main([*words, "--server.url", server.url]) == 0
    assert main(words) == 2
    assert "server:tiny" in capsys.readouterr().err


def test_a_dry_run_asks_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Unruly() as server:
        assert generate(server.url, tmp_path / "run", "--model.name", "not/here", "--dry-run") == 0
        assert server.requests == []
    told = capsys.readouterr().out
    assert f"server: {server.url}, model served (not asked in a dry run)" in told
    assert "stic, scene-00000.png: 1 media: " in told


def test_from_python(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for index, scene in enumerate(scenes(2, seed=0, split="pairs")):
        draw_scene(scene).save(tmp_path / "pictures" / f"{index}.png")
    with Unruly(lambda request, number: hashed(request)) as server:
        model = mmalign.served("tiny", server.url, kind="vllm")
        pairs = mmalign.make_pairs("stic", tmp_path / "pictures", model, run=tmp_path / "run")
        assert len(pairs) == 2
        assert mmalign.make_pairs("stic", tmp_path / "pictures", model, run=tmp_path / "run").rows == pairs.rows
        other = mmalign.served("tiny", server.url, kind="sglang")
        with pytest.raises(StoreError, match=r'server\.kind: "vllm" -> "sglang"'):
            mmalign.make_pairs("stic", tmp_path / "pictures", other, run=tmp_path / "run")
    with pytest.raises(RecipeError, match=r"server\.url: give http://HOST:PORT/v1"):
        mmalign.served("tiny", "localhost:8000")
