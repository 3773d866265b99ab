"""A push lists what goes, sends nothing else, and ends in one line when it cannot; the hub is a stand-in."""

from __future__ import annotations

import inspect
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pyarrow.parquet as pq
import pytest
import yaml

from mmalign.cards import hub
from mmalign.cards.record import Record
from mmalign.cards.upload import File, model_files, pair_files
from mmalign.cli import main
from mmalign.errors import Interrupted, StoreError
from mmalign.pairs import read_pairs
from mmalign.samples import data_folder
from tests.cards.runs import SECRETS, make_run

REAL = huggingface_hub.HfApi


class HTTPError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"{status} from the hub,\nat length")
        self.response = SimpleNamespace(status_code=status)


class Hub:
    """What a hub would keep. `fail` is called before every request and may raise."""

    def __init__(self) -> None:
        self.repos: dict[str, SimpleNamespace] = {}
        self.files: dict[str, bytes] = {}
        self.commits: list[list[str]] = []
        self.fail: Callable[[str], None] = lambda request: None

    @staticmethod
    def checked(request: str, *args: Any, **kwargs: Any) -> None:
        """Raises TypeError for what the real client would not take."""
        inspect.signature(getattr(REAL, request)).bind(None, *args, **kwargs)

    def create_repo(self, to: str, *, repo_type: str, private: bool, exist_ok: bool) -> str:
        self.fail("create")
        self.checked("create_repo", to, repo_type=repo_type, private=private, exist_ok=exist_ok)
        assert exist_ok
        self.repos.setdefault(to, SimpleNamespace(private=private, kind=repo_type))
        return f"https://hub/{repo_type}s/{to}"

    def repo_info(self, to: str, *, repo_type: str) -> SimpleNamespace:
        self.checked("repo_info", to, repo_type=repo_type)
        return self.repos[to]

    def create_commit(self, to: str, operations: list[Any], *, repo_type: str, commit_message: str) -> None:
        self.fail("commit")
        self.checked("create_commit", to, operations, repo_type=repo_type, commit_message=commit_message)
        for operation in operations:
            with operation.as_file() as stream:
                self.files[operation.path_in_repo] = stream.read()
        self.commits.append([operation.path_in_repo for operation in operations])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "WAITS", (0.0, 0.0, 0.0))
    return made


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


def test_pairs_go_to_a_private_data_set_without_media_and_secrets(
    run: Path, fake: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run), "--to", "me/pairs", "--pairs"]) == 0
    told = capsys.readouterr().out
    assert "uploading to me/pairs (private dataset):" in told
    assert told.endswith("https://hub/datasets/me/pairs\n")
    assert fake.repos["me/pairs"] == SimpleNamespace(private=True, kind="dataset")
    assert sorted(fake.files) == ["README.md", "recipe.yaml", "round-0/pairs.parquet"]
    for name in fake.files:
        assert name in told, "everything that goes is listed"
    table = pq.read_table(io.BytesIO(fake.files["round-0/pairs.parquet"]))
    noted = "".join(map(str, table.drop_columns(["chosen"]).to_pylist()))
    noted += fake.files["README.md"].decode() + fake.files["recipe.yaml"].decode()
    assert not [secret for secret in SECRETS if secret in noted]
    assert table["chosen"][0].as_py() == "/home/jo is what the picture says.", "words of a model are not touched"
    assert yaml.safe_load(fake.files["recipe.yaml"])["data"]["images"] == "pictures"


def test_media_go_only_when_asked_and_are_found_again(run: Path, fake: Hub, tmp_path: Path) -> None:
    assert main(["push", str(run), "--to", "me/pairs", "--pairs", "--with-media", "--public"]) == 0
    assert not fake.repos["me/pairs"].private
    for name, content in fake.files.items():
        path = tmp_path / "fetched" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    path = tmp_path / "fetched" / "round-0" / "pairs.parquet"
    (ref,) = read_pairs(path)[0].media
    assert (data_folder(path) / ref.path).read_bytes() == (run.parent / "pictures" / "a.png").read_bytes()
    assert "The media are in `media/`" in fake.files["README.md"].decode()


@pytest.mark.parametrize("adapter", [True, False])
def test_a_model_goes_with_what_belongs_to_it(tmp_path: Path, fake: Hub, adapter: bool) -> None:
    run = make_run(tmp_path, adapter=adapter)
    assert main(["push", str(run), "--to", "me/model", "--model", "--license", "mit"]) == 0
    assert fake.repos["me/model"].kind == "model"
    config = "adapter_config.json" if adapter else "config.json"
    weights = "adapter_model.safetensors" if adapter else "model.safetensors"
    assert sorted(fake.files) == sorted(["README.md", config, weights, "tokenizer.json"])
    found = json.loads(fake.files[config])
    expected = {"base_model_name_or_path": "Qwen/Qwen3-VL-8B-Instruct"} if adapter else {"_name_or_path": "Qwen"}
    assert found == expected
    assert fake.files["tokenizer.json"] == b'{"vocab": {"/": 0, "/a/b": 1}}'
    assert "license: mit" in fake.files["README.md"].decode()


def test_a_dry_run_sends_nothing_and_needs_no_token(
    run: Path, fake: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert main(["push", str(run), "--to", "me/pairs", "--pairs", "--dry-run"]) == 0
    assert "would upload to me/pairs (private dataset):" in capsys.readouterr().out
    assert not fake.repos
    assert main(["push", str(run), "--to", "me/pairs", "--pairs"]) == 2
    assert "there is no token of the hub" in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert main(["push", str(run), "--to", "me/pairs", "--pairs"]) == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
    assert not fake.repos


def test_a_public_repository_is_not_taken_for_a_private_one(run: Path, fake: Hub) -> None:
    fake.repos["me/pairs"] = SimpleNamespace(private=False)
    with pytest.raises(StoreError, match="is public; give --public"):
        hub.push([File("a", b"x")], "me/pairs", kind="dataset")
    assert not fake.files


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, "does not know the token"),
        (403, "may not write there"),
        (404, "refused it"),
        (500, "could not be reached"),
    ],
)
def test_refusals_are_one_line(
    run: Path, fake: Hub, status: int, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(request: str) -> None:
        raise HTTPError(status)

    fake.fail = fail
    assert main(["push", str(run), "--to", "me/pairs", "--pairs"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert reason in told


@pytest.mark.parametrize("failure", [HTTPError(503), HTTPError(429), ConnectionError("gone"), TimeoutError()])
def test_what_passes_is_tried_again(fake: Hub, failure: Exception) -> None:
    failures = [failure, failure]
    waited: list[float] = []

    def fail(request: str) -> None:
        if request == "commit" and failures:
            raise failures.pop()

    fake.fail = fail
    hub.push([File("a", b"x")], "me/pairs", kind="dataset", wait=waited.append)
    assert fake.files == {"a": b"x"}
    assert len(waited) == 2


def test_what_does_not_pass_is_not_tried_again(fake: Hub) -> None:
    asked: list[str] = []

    def fail(request: str) -> None:
        asked.append(request)
        raise HTTPError(403)

    fake.fail = fail
    with pytest.raises(StoreError):
        hub.push([File("a", b"x")], "me/pairs", kind="dataset")
    assert asked == ["create"]


def test_many_files_go_in_several_commits_and_the_card_last(fake: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "FILES_PER_COMMIT", 2)
    done: list[int] = []
    files = [File(name, name.encode()) for name in ("README.md", "a", "b", "c")]
    hub.push(files, "me/pairs", kind="dataset", progress=done.append)
    assert fake.commits == [["a", "b"], ["c", "README.md"]]
    assert done == [2, 4]


def test_an_interrupted_upload_is_finished_by_the_same_command(
    run: Path, fake: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "FILES_PER_COMMIT", 1)

    def fail(request: str) -> None:
        if fake.commits:
            raise KeyboardInterrupt

    fake.fail = fail
    files = pair_files(Record.read(run), None, with_media=True)
    with pytest.raises(Interrupted, match="the same command sends the rest"):
        hub.push(files, "me/pairs", kind="dataset")
    assert "README.md" not in fake.files
    assert main(["push", str(run), "--to", "me/pairs", "--pairs"]) == 130
    fake.fail = lambda request: None
    hub.push(files, "me/pairs", kind="dataset")
    assert sorted(fake.files) == sorted(file.path for file in files)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--to", "pairs", "--pairs"], "'pairs' is no repository; give NAMESPACE/NAME"),
        (["--to", "me/m", "--model", "--with-media"], "--with-media goes with --pairs"),
    ],
)
def test_flags_that_do_not_fit(
    run: Path, fake: Hub, flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run), *flags]) == 2
    assert reason in capsys.readouterr().err
    assert not fake.repos


def test_a_run_without_pairs_or_model_has_nothing_to_upload(run: Path) -> None:
    (run / "train" / "result.json").unlink()
    with pytest.raises(StoreError, match="no trained model"):
        model_files(Record.read(run), None)
    (run.parent / "pictures" / "a.png").unlink()
    with pytest.raises(StoreError, match=r"a.png: no such file .* leave out --with-media"):
        pair_files(Record.read(run), None, with_media=True)
    (run / "round-0" / "pairs.parquet").unlink()
    with pytest.raises(StoreError, match="no pairs to upload"):
        pair_files(Record.read(run), None, with_media=False)
