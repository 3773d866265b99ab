import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmalign.cli import RECIPE_VERBS, VERBS, main


def test_without_a_verb_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out = capsys.readouterr().out
    assert all(
        verb in out for verb in ("run", "generate", "train", "evaluate", "inspect", "prepare", "list", "doctor", "demo")
    )


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("mmalign 0.")


@pytest.mark.parametrize("verb", sorted(RECIPE_VERBS))
def test_a_missing_recipe_is_one_line(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, str(tmp_path / "no.yaml")]) == 2
    error = capsys.readouterr().err
    assert "no.yaml: no such recipe" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demo", "--seed", "3"], "did you mean --seeds?"),
        (["inspect", "nowhere", "--max-pair", "3"], "did you mean --max-pairs?"),
        (["demo", "--method", "nothing"], "there are apasi, self_consistency, stic"),
        (["demo", "--seeds", "0"], "must be 1 or more"),
        (["inspect", "nowhere"], "not a run directory"),
        (["prepare", "images", "nowhere", "--output", "x.parquet"], "nowhere: no such file or folder"),
    ],
)
def test_mistakes_are_told_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("mmalign: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("what", ["methods", "objectives", "corruptions"])
def test_list_names_everything_with_its_parameters(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", what]) == 0
    out = capsys.readouterr().out
    wanted = {"methods": "p_bad_prompt", "objectives": "beta", "corruptions": "low_resolution"}
    assert wanted[what] in out


def test_the_module_runs_as_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mmalign", "run", "no.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_help_with_a_recipe_lists_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path(__file__).resolve().parents[2] / "recipes" / "image" / "stic.yaml"
    assert main(["run", str(recipe), "--help"]) == 0
    out = capsys.readouterr().out
    assert "--method.p_bad_prompt" in out
    assert "--train.lora" in out
    assert main(["run", "--help"]) == 0
    assert "RECIPE" in capsys.readouterr().out


def test_the_recipe_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--data.limit", "5", "recipe.yaml"]) == 2
    assert "run: give the recipe first" in capsys.readouterr().err


def test_what_the_system_refuses_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("method: {name: stic}\nobjective: {name: dpo}\ndata: {scenes: 1}\n", encoding="utf-8")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.lock").touch()
    (tmp_path / "run" / "scenes").touch()  # a file where a folder has to be
    assert main(["generate", str(recipe), "--output", str(tmp_path / "run")]) == 2
    (told,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("pairs: ")]
    assert told.startswith(f"mmalign: {tmp_path / 'run' / 'scenes'}: cannot be written (file exists); ")
    assert told.endswith("a file stands where a folder has to be; move it away or name another output")


def test_what_the_system_refuses_where_nobody_expects_it_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(_: object) -> int:
        raise OSError(errno.EIO, "Input/output error", "a\nb")

    monkeypatch.setitem(VERBS, "list", refused)
    assert main(["list"]) == 2
    assert capsys.readouterr().err == "mmalign: a\\nb: Input/output error; what is done is kept\n"


def test_output_below_the_pictures_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("method: {name: stic}\nobjective: {name: dpo}\n", encoding="utf-8")
    words = ["generate", str(recipe), "--data.images", str(tmp_path), "--output", str(tmp_path / "run")]
    assert main(words) == 2
    assert "lies below data.images" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_launcher_that_says_half_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for size, rank in (("2", None), ("2", "2"), ("many", "0"), ("0", "0"), ("", "0"), ("4", "-1")):
        monkeypatch.setenv("WORLD_SIZE", size)
        monkeypatch.setenv("RANK", rank) if rank else monkeypatch.delenv("RANK", raising=False)
        assert main(["list"]) == 2
        told = capsys.readouterr()
        expected = f"mmalign: environment: WORLD_SIZE is {size}, RANK is {rank or 'not set'}; `accelerate launch` sets "
        assert told.err == f"{expected}both, otherwise unset WORLD_SIZE\n"
        assert told.out == ""


def test_a_terminal_that_cannot_show_a_letter_is_no_mistake(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("method: {name: stic}\nobjective: {name: dpo}\ndata: {scenes: 1}\n", encoding="utf-8")
    words = ["generate", str(recipe), "--output", str(tmp_path / "\u00fc\u5199"), "--dry-run"]
    done = subprocess.run(
        [sys.executable, "-m", "mmalign", *words],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"output: %s/\xfc\u5199" % os.fsencode(tmp_path) in done.stdout


def test_a_name_that_is_no_unicode_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(VERBS, "list", lambda _: len("x\udcff".encode()))
    assert main(["list"]) == 2
    told = "is not UTF-8, as names in files of mmalign must be; rename it"
    assert capsys.readouterr().err == f"mmalign: x\\udcff: {told}\n"


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as nobody:
        words = [sys.executable, "-m", "mmalign", "inspect", str(tmp_path), "--dry-run"]
        done = subprocess.run(words, stdout=nobody, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (141, b"")
