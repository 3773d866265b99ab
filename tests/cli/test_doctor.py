"""Wrong installs, simulated: whatever a package does when it is loaded, the doctor says one line and goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmalign.cli import doctor, main
from mmalign.cli.doctor import child, packages
from mmalign.cli.doctor.child import Outcome
from mmalign.cli.doctor.findings import Finding

Fake = Callable[..., None]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Puts a package before the real one: its code, and the metadata of its installation."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def put(name: str, code: str = "", version: str = "", asks: tuple[str, ...] = ()) -> None:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text(code)
        if version:
            folder = tmp_path / f"{name}-{version}.dist-info"
            folder.mkdir()
            lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {asked}" for asked in asks)]
            (folder / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n")

    return put


BROKEN = {
    "raises": (
        "raise ImportError('libcudart.so.13: cannot open\\x1b[2J\\nmore')",
        r"ImportError: libcudart.so.13: cannot",
    ),
    "oserror": ("raise OSError('undefined symbol: _ZN2at')", "OSError: undefined symbol: _ZN2at"),
    "exits": ("raise SystemExit('no')", "SystemExit: no"),
    "interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "aborts": ("import os; os.abort()", "crashes (SIGABRT)"),
    "segfaults": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashes (SIGSEGV)"),
    "leaves": (
        "import os, sys; sys.stderr.write('bad\\n'); sys.stderr.flush(); os._exit(3)",
        "ends the process (exit 3): bad",
    ),
    "silent": ("import os; os._exit(0)", "ends the process (exit 0): it says nothing"),
    "hangs": ("import time; time.sleep(1000)", "does not answer within 3 s"),
    "deaf": (
        "import signal, time, subprocess, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)']); time.sleep(1000)",
        "does not answer within 3 s",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_one_line_whatever_a_package_does(kind: str, fake: Fake) -> None:
    code, expected = BROKEN[kind]
    fake("brokenpackage", code)
    fake("goodpackage", "print('noise' * 1000)")
    found = child.run(["goodpackage", "brokenpackage", "json"], seconds=3 if "time.sleep" in code else 30)
    assert list(found) == ["goodpackage", "brokenpackage", "json"]
    assert [outcome.is_well for outcome in found.values()] == [True, False, True]
    reason = found["brokenpackage"].found
    assert reason.startswith(expected)
    assert len(reason) <= 160
    assert not set(reason) & {"\n", "\x1b"}


def test_everything_broken_is_told_one_by_one(fake: Fake) -> None:
    names = [f"broken{number}" for number in range(3)]
    for name in names:
        fake(name, "import os; os._exit(1)")
    assert [outcome.is_well for outcome in child.run(names, seconds=30).values()] == [False] * 3


def test_ctrl_c_ends_the_trials(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> list[Finding]:
        raise KeyboardInterrupt

    fake("slowpackage", f"import time, pathlib; time.sleep(3); pathlib.Path({str(tmp_path / 'waited')!r}).touch()")
    monkeypatch.setattr(packages, "groups", lambda installed: [["slowpackage", "json"]])
    monkeypatch.setattr(doctor.machine, "findings", interrupted)
    with pytest.raises(KeyboardInterrupt):
        doctor.findings()
    assert not (tmp_path / "waited").exists()


def lines(**loaded: Outcome) -> dict[str, Finding]:
    return {finding.check: finding for finding in packages.findings(packages.installed(), loaded)}


def test_versions_below_the_least_one_come_with_the_command(fake: Fake) -> None:
    fake("peft", version="0.3.0")
    fake("ray", version="1.0")
    found = lines()
    assert (found["peft"].status, found["peft"].found) == ("broken", "0.3.0, >=0.21 is needed")
    assert found["peft"].remedy == "pip install -U 'peft>=0.21'"
    assert (found["ray"].status, found["ray"].remedy) == ("note", "pip install -U 'mmalign[ray]'")
    assert found["numpy"].status == "ok"


def test_a_torchvision_of_another_torch_is_found(fake: Fake) -> None:
    fake("torchvision", version="0.99", asks=("torch==2.99.0", "gdown; extra == 'gdown'", "not a requirement !"))
    found = lines()["torchvision"]
    assert found.status == "broken"
    assert found.found.startswith("0.99, made for torch==2.99.0, but torch is 2.")
    assert found.remedy == "pip install -U torch torchvision"


def test_what_is_missing_comes_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    really = packages._version
    monkeypatch.setattr(packages, "_version", lambda name: None if name in ("av", "ray", "torch") else really(name))
    found = lines()
    assert (found["av"].status, found["av"].remedy) == ("broken", "pip install -U 'av>=18'")
    assert found["torch"].remedy == "pip install -U torch torchvision"
    assert (found["ray"].status, found["ray"].found) == ("ok", "not installed; for engine: ray")


def test_what_does_not_load_comes_with_the_command() -> None:
    bad = Outcome(False, "crashes (SIGABRT)")
    found = lines(**dict.fromkeys(("pyarrow", "torch", "ray", "openai", "embedded model", "video by pyav"), bad))
    assert found["pyarrow"].remedy == "pip install --force-reinstall --no-cache-dir 'pyarrow>=21'"
    assert found["torch"].found.endswith("does not work: crashes (SIGABRT)")
    assert {
        name: found[name].status for name in ("pyarrow", "torch", "embedded model", "video by pyav")
    } == dict.fromkeys(("pyarrow", "torch", "embedded model", "video by pyav"), "broken")
    assert {found[name].status for name in ("ray", "openai")} == {"note"}
    assert found["ray"].remedy.startswith("pip uninstall ray, or pip install -U 'mmalign[ray]'")


def test_advice_and_what_cannot_be_used_here_are_no_faults() -> None:
    found = lines(
        accelerator=Outcome(True, "a GPU is there", "pip install torch"), flex_attention=Outcome(False, "needs a GPU")
    )
    assert (found["accelerator"].status, found["accelerator"].remedy) == ("note", "pip install torch")
    assert (found["flex_attention"].status, found["flex_attention"].found) == ("ok", "cannot be used: needs a GPU")


def test_from_source_versions_cannot_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_asked", lambda name, extra="": [])
    [about] = [f for f in packages.findings(packages.installed(), {}) if f.section == "needed"]
    assert (about.check, about.status) == ("mmalign", "note")


def test_only_what_is_there_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = packages.installed()
    for name in ("ray", "trl", "openai", "decord"):
        installed[name] = packages.Package(name, name, "", None)
    tried = {name for group in packages.groups(installed) for name in group}
    assert not tried & {"ray", "trl", "openai", "video by decord"}
    assert {"torch", "torchvision", "pillow", "video by pyav", "embedded model", "attention", "accelerator"} <= tried


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("note", 0), ("broken", 1)])
def test_the_exit_tells_whether_something_needed_is_broken(
    status: Any, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [
        Finding("needed", "torch", status, "2.0 [bold]\x1b[1m", "pip [x] y" * 20),
        Finding("limits", "a", "ok", "b"),
    ]
    monkeypatch.setattr(doctor, "findings", lambda quick: made)
    assert main(["doctor"]) == code
    out = capsys.readouterr().out
    assert "[bold]\\x1b[1m" in out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80
    assert ("broken: torch" in out) == (status == "broken")
    assert main(["doctor", "--json"]) == code
    read = json.loads(capsys.readouterr().out)
    assert read["well"] == (code == 0)
    assert read["findings"][0] == {
        "section": "needed",
        "check": "torch",
        "status": status,
        "found": "2.0 [bold]\x1b[1m",
        "remedy": "pip [x] y" * 20,
    }
