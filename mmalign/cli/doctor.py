"""`mmalign doctor`: what is installed, what really loads, and the remedy for what does not."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.table import Table

PACKAGES = ("torch", "torchvision", "transformers", "peft", "accelerate", "trl", "pillow", "pyarrow", "av")


def main() -> int:
    """Print one line per check; 1 when something that mmalign needs is broken."""
    table = Table(title="mmalign doctor", show_lines=False)
    for column in ("check", "found", "what to do"):
        table.add_column(column, overflow="fold")
    broken = 0
    for name, found, remedy in _findings():
        broken += bool(remedy)
        table.add_row(name, found, remedy or "ok")
    Console().print(table)
    return 1 if broken else 0


def _findings() -> list[tuple[str, str, str]]:
    rows = [
        ("python", f"{platform.python_version()} on {platform.platform()}", ""),
        ("cores", f"{os.cpu_count()}", ""),
    ]
    for package in PACKAGES:
        needed = package != "trl"  # TRL is only compared with, in tests
        try:
            rows.append((package, version(package), "" if not needed or _loads(package) else _reinstall(package)))
        except PackageNotFoundError:
            rows.append((package, "not installed", _reinstall(package) if needed else ""))
    rows.append(_probe("accelerator", _accelerator))
    rows.append(_probe("embedded model", _embedded_model))
    rows += _decoders()
    rows.append(_probe("hub", _hub))
    return rows


def _loads(package: str) -> bool:
    try:
        import_module({"pillow": "PIL"}.get(package, package))
    except (ImportError, OSError, RuntimeError) as error:  # a wheel built for another torch fails with any of these
        print(f"mmalign: {package} does not load: {str(error).splitlines()[0]}", file=sys.stderr)
        return False
    return True


def _reinstall(package: str) -> str:
    return f"pip install -c constraints.txt {package}"


def _probe(name: str, probe: Callable[[], str]) -> tuple[str, str, str]:
    try:
        return name, probe(), ""
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return name, f"fails: {str(error).splitlines()[0][:80]}", "pip install -c constraints.txt -e ."


def _accelerator() -> str:
    import torch

    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return "none; everything runs on the CPU"


def _embedded_model() -> str:
    from mmalign.lm.load import load_model
    from mmalign.lm.spec import ModelSpec

    loaded = load_model(ModelSpec())
    return f"{loaded.name}: {sum(weight.numel() for weight in loaded.model.parameters()) / 1e6:.1f} M parameters"


def _decoders() -> list[tuple[str, str, str]]:
    """What really decodes a frame; only PyAV has to."""
    from mmalign.media.video import DECODERS, why_not

    rows = []
    for name in DECODERS:
        reason = why_not(name).removeprefix(f"data.decoder: {name} ")
        found = reason[:80] or "decodes"
        rows.append((f"video by {name}", found, _reinstall("av") if reason and name == "pyav" else ""))
    return rows


def _hub() -> str:
    offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    return "offline (HF_HUB_OFFLINE=1)" if offline else "asked only with --model.download true"
