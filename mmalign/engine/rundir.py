"""The run directory: one folder per run, locked, with its recipe and environment; files appear whole or not at all.

Only the process that holds the lock writes here. Readers (the report, a trainer) open the files by path and need no
lock, because every file is renamed into place when it is complete.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
import weakref
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from mmalign.atomic import explained, write_json, write_text
from mmalign.engine.environment import environment
from mmalign.errors import StoreError

LOCK_NAME = "run.lock"
RECIPE_NAME = "recipe.yaml"
ENVIRONMENT_NAME = "environment.json"


class RunDir:
    """A run directory, created if need be and held by this process until `close`.

    Args:
        path: The folder. It must be new, empty, or a run directory.
        locked: False where another process of the same launch holds the directory for this one.

    Raises:
        StoreError: The folder is in use by another process, is something else, or cannot be written.
    """

    def __init__(self, path: Path, *, locked: bool = True) -> None:
        self.path = path
        with explained(path):
            if path.exists() and not path.is_dir():
                raise StoreError(f"{path}: a run directory is a folder, this is a file; name another output")
            path.mkdir(parents=True, exist_ok=True)
            _check_is_ours(path)
            self._lock: int | None = _lock(path) if locked else None
        if locked:
            _HELD.add(self)

    def close(self) -> None:
        """Let other processes use the directory."""
        if self._lock is not None:
            _HELD.discard(self)
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def round_path(self, round: int) -> Path:
        """The folder of one round, created."""
        path = self.path / f"round-{round}"
        with explained(path):
            path.mkdir(exist_ok=True)
        return path

    def pairs_path(self, round: int = 0) -> Path:
        return self.path / f"round-{round}" / "pairs.parquet"

    @property
    def quarantine_path(self) -> Path:
        return self.path / "quarantine.jsonl"

    def begin(self, recipe: Mapping[str, Any], free: Collection[str] = ()) -> list[str]:
        """Record the recipe and this start; on a resumed run, refuse a recipe that would make other pairs.

        Args:
            recipe: The resolved recipe: mappings, lists and plain values (paths are written as text).
            free: Dotted keys that may differ from the recorded recipe; a key covers all below it.

        Returns:
            What did change among `free`, as "key: old -> new"; `recipe.yaml` then holds the new values.

        Raises:
            StoreError: Any other key differs, and results were made already; the message says which, and both values.
        """
        fresh = plain(recipe)
        recipe_path = self.path / RECIPE_NAME
        changed: list[str] = []
        if recipe_path.exists():
            changes = differences(_load_yaml(recipe_path), fresh)
            refused = [text for key, text in changes.items() if not _covered(key, free)]
            if refused and self._holds_results():
                raise StoreError(
                    f"{self.path}: this run was begun with another recipe ({'; '.join(refused)}); "
                    "put the old values back to go on with it, or name another output"
                )
            changed = list(changes.values())
        if changed or not recipe_path.exists():
            write_text(recipe_path, yaml.safe_dump(fresh, sort_keys=False, allow_unicode=True))
        self._record_start()
        return changed

    def _holds_results(self) -> bool:
        """Whether anything was made here yet; a recipe that failed before, by a model mistyped, binds nobody."""
        own = (LOCK_NAME, RECIPE_NAME, ENVIRONMENT_NAME)
        return any(entry.name not in own and not entry.name.startswith(".") for entry in self.path.iterdir())

    def _record_start(self) -> None:
        path = self.path / ENVIRONMENT_NAME
        now = plain(environment())
        start = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "command": list(sys.argv)}
        starts: list[Any] = []
        if path.exists():
            before = _load_json(path)
            starts = before.pop("starts", [])
            # Results may hang on versions, so each start says in what it differs from the one before.
            start["changed"] = list(differences(before, now).values())
        write_json(path, {**now, "starts": [*starts, start]})


def plain(value: Any) -> Any:
    """`value` as YAML and JSON hold it: dicts with text keys, lists, and scalars; anything else becomes text."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def differences(old: Any, new: Any, key: str = "") -> dict[str, str]:
    """Dotted keys whose values differ, each with a text "key: old -> new"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: dict[str, str] = {}
        for name in [*old, *(name for name in new if name not in old)]:
            dotted = f"{key}.{name}" if key else str(name)
            found |= differences(old.get(name, _ABSENT), new.get(name, _ABSENT), dotted)
        return found
    return {} if old == new and type(old) is type(new) else {key: f"{key}: {_shown(old)} -> {_shown(new)}"}


class _Absent:
    pass


_ABSENT = _Absent()


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "(none)"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _covered(key: str, prefixes: Collection[str]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _load_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise StoreError(f"{path}: cannot be read ({str(error).splitlines()[0]}); name another output") from None


def _load_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); move it away to go on") from None
    if not isinstance(value, dict):
        raise StoreError(f"{path}: expected a JSON object; move it away to go on")
    return value


def _check_is_ours(path: Path) -> None:
    names = {entry.name for entry in path.iterdir()}
    strangers = sorted(name for name in names if not name.startswith("."))
    if strangers and not names & {LOCK_NAME, RECIPE_NAME}:
        raise StoreError(
            f"{path}: not a run directory, it holds other files (such as {strangers[0]}); name a new or empty folder"
        )


#: Directories held by this process: a forked child (a data loader's worker) must not keep the lock alive.
_HELD: weakref.WeakSet[RunDir] = weakref.WeakSet()


#: How often a lock is tried, a tenth of a second apart.
LOCK_TRIES = 15


def _lock(path: Path) -> int:
    # flock is released by the kernel when the process dies, however it dies, and works on network file systems.
    handle = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _hold(handle)
    except BlockingIOError:
        holder = os.read(handle, 1000).decode("utf-8", "replace").strip() or "another process"
        os.close(handle)
        raise StoreError(f"{path}: in use by {holder}; wait for it to end or name another output") from None
    except BaseException:
        os.close(handle)
        raise
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return handle


def _hold(handle: int) -> None:
    """Raises BlockingIOError where another process holds the file, and goes on doing so."""
    for left in reversed(range(LOCK_TRIES)):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not left:
                raise
            time.sleep(0.1)  # a process that was killed may leave a child that holds the lock until it is all there


def _release_in_child() -> None:
    # Closing the child's copy leaves the parent's lock in force.
    for run in list(_HELD):
        run.close()


os.register_at_fork(after_in_child=_release_in_child)
