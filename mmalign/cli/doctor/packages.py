"""What is installed, which version mmalign asks for, and what becomes of it when it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import InvalidRequirement, Requirement

from mmalign.cli.doctor.child import Outcome
from mmalign.cli.doctor.findings import Finding

#: Needed packages that are tried, in an order in which each trial finds most of its imports done by earlier ones.
TRIED = ("torch", "torchvision", "transformers", "peft", "accelerate")
#: What is tried beside packages; it fails for reasons of their own.
COMBINED = ("accelerate launch", "embedded model", "attention", "accelerator")
DECODERS = {"video by pyav": "av", "video by decord": "decord", "video by torchcodec": "torchcodec"}
#: Extra packages with the name they are imported by, and what they are for.
EXTRAS = {
    "ray": ("ray", "engine: ray"),
    "openai": ("openai", "a model behind a server"),
    "stamina": ("stamina", "a model behind a server"),
    "tensorboard": ("tensorboard", "curves while training"),
    "bitsandbytes": ("bitsandbytes", "QLoRA"),
    "deepspeed": ("deepspeed", "ZeRO"),
    "decord": ("", "faster decoding"),
    "torchcodec": ("", "faster decoding"),
    "open-clip-torch": ("open_clip", "image-text scores"),
    "flash-attn": ("", "flash_attention_2"),
    "trl": ("trl", "comparisons with TRL"),
}
#: Extras that the package's metadata names by another word than the package's.
_EXTRA_NAMES = {"openai": "server", "stamina": "server", "tensorboard": "trackers", "bitsandbytes": "qlora"}
_EXTRAS = ("server", "ray", "trackers", "qlora", "deepspeed", "decord", "torchcodec")
#: Packages that must come from one installation, because one is compiled for the other.
_TOGETHER = {"torch", "torchvision"}


@dataclass(frozen=True, slots=True)
class Package:
    """A package that mmalign asks for. `extra` is empty for one that it needs, `version` None where it is missing."""

    name: str
    asked: str
    extra: str
    version: str | None

    @property
    def is_old(self) -> bool:
        """Whether the version is not one that is asked for."""
        return self.version is not None and not _fits(self.asked, self.version)

    @property
    def command(self) -> str:
        """What puts it right."""
        if self.extra:
            return f"pip install -U 'mmalign[{self.extra}]'"
        if self.name in _TOGETHER:
            return "pip install -U torch torchvision"
        return f"pip install -U '{self.asked}'"


def installed() -> dict[str, Package]:
    """All packages that mmalign's own metadata asks for, and extras that it can use, by name."""
    found: dict[str, Package] = {}
    for asked in _asked("mmalign"):
        found.setdefault(asked.name, Package(asked.name, _plain(asked), "", _version(asked.name)))
    extras = {extra: _asked("mmalign", extra) for extra in _EXTRAS}
    named = {asked.name: asked for rows in extras.values() for asked in rows}
    for name in EXTRAS:
        extra = _EXTRA_NAMES.get(name, name) if name in named else ""
        asked_for = _plain(named[name]) if name in named else name
        found.setdefault(name, Package(name, asked_for, extra, _version(name)))
    return found


def groups(installed: Mapping[str, Package]) -> list[list[str]]:
    """Trials that share a child process each, the longest first."""
    there = [name for name, (module, _) in EXTRAS.items() if module and installed[name].version is not None]
    beside = [*(name for name in there if name not in ("ray", "trl", "open-clip-torch")), "pillow", "pyarrow"]
    slow = [EXTRAS[name][0] for name in there if name in ("trl", "open-clip-torch")]
    kernels = ["flex_attention", *(["flash_attention_2"] if installed["flash-attn"].version else [])]
    decoders = [name for name, package in DECODERS.items() if package == "av" or installed[package].version]
    return [
        [*TRIED, *COMBINED, *kernels],
        [*decoders, *beside, *slow],
        *([["ray"]] if "ray" in there else []),
    ]


def findings(installed: Mapping[str, Package], loaded: Mapping[str, Outcome]) -> list[Finding]:
    """Lines about packages. `loaded` is how trials ended; without one, only what is installed is told."""
    needed = [package for package in installed.values() if package.name not in EXTRAS]
    found = [_needed(package, loaded.get(package.name)) for package in needed]
    if not needed:
        found.append(Finding("needed", "mmalign", "note", "runs without being installed", "pip install -e ."))
    found += [
        line for name in (*COMBINED, "video by pyav", "flex_attention") if (line := _combined(name, loaded)) is not None
    ]
    found += [_extra(installed[name], loaded) for name in EXTRAS]
    return found


def _needed(package: Package, outcome: Outcome | None) -> Finding:
    name = package.name
    if package.version is None:
        return Finding("needed", name, "broken", "not installed", package.command)
    if package.is_old:
        found = f"{package.version}, {package.asked.removeprefix(name)} is needed"
        return Finding("needed", name, "broken", found, package.command)
    if clash := _clash(name):
        return Finding("needed", name, "broken", f"{package.version}, {clash}", package.command)
    if outcome is not None and not outcome.is_well:
        command = package.command.replace("-U", "--force-reinstall --no-cache-dir")
        return Finding("needed", name, "broken", f"{package.version}, does not work: {outcome.found}", command)
    return Finding("needed", name, "ok", package.version + (f", {outcome.found}" if outcome is not None else ""))


def _combined(name: str, loaded: Mapping[str, Outcome]) -> Finding | None:
    outcome = loaded.get(name)
    if outcome is None:
        return None
    if outcome.is_well:
        return Finding("loads", name, "note" if outcome.advice else "ok", outcome.found, outcome.advice)
    if name == "flex_attention":
        return Finding("loads", name, "ok", f"cannot be used: {outcome.found}")
    remedy = {
        "accelerate launch": "accelerate config",
        "embedded model": "pip install --force-reinstall --no-deps mmalign",
        "video by pyav": "pip install --force-reinstall --no-cache-dir av",
        "accelerator": "look at nvidia-smi; CUDA_VISIBLE_DEVICES= mmalign ... runs on the CPU",
        "attention": "pip install -U torch torchvision",
    }[name]
    return Finding("loads", name, "broken", outcome.found, remedy)


def _extra(package: Package, loaded: Mapping[str, Outcome]) -> Finding:
    name = package.name
    module, purpose = EXTRAS[name]
    if package.version is None:
        return Finding("extras", name, "ok", f"not installed; for {purpose}")
    if package.is_old:
        return Finding("extras", name, "note", f"{package.version}, {package.asked} is needed", package.command)
    trial = {"flash-attn": "flash_attention_2"}.get(name, f"video by {name}" if not module else name)
    outcome = loaded.get(trial, loaded.get(module))
    if outcome is None:
        return Finding("extras", name, "ok", package.version)
    if not outcome.is_well:
        remedy = f"pip uninstall {name}, or {package.command}"
        return Finding("extras", name, "note", f"{package.version}, does not work: {outcome.found}", remedy)
    return Finding("extras", name, "ok", f"{package.version}, {outcome.found}")


def _clash(name: str) -> str:
    """What an installed package asks of another installed one that it is compiled for and does not get."""
    if name not in _TOGETHER:
        return ""
    for asked in _asked(name):
        there = _version(asked.name)
        if asked.name in _TOGETHER and there is not None and not _fits(_plain(asked), there):
            return f"made for {_plain(asked)}, but {asked.name} is {there}"
    return ""


def _asked(name: str, extra: str = "") -> list[Requirement]:
    """What a package asks for on this machine, with an extra or without. Empty where it is not installed."""
    try:
        lines: Sequence[str] = requires(name) or ()
    except PackageNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            asked = Requirement(line)
        except InvalidRequirement:
            continue
        is_plain = asked.marker is None or asked.marker.evaluate({"extra": ""})
        if is_plain if not extra else not is_plain and asked.marker and asked.marker.evaluate({"extra": extra}):
            found.append(asked)
    return found


def _plain(asked: Requirement) -> str:
    return f"{asked.name}{asked.specifier}"


def _fits(asked: str, there: str) -> bool:
    return Requirement(asked).specifier.contains(there, prereleases=True)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
