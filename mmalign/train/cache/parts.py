"""Numbers of rows on disk, many rows in a file, found again row by row.

A part is a safetensors file; its header names the rows it holds. Parts are never changed, so any number of processes
may write and read in one folder: two that make the same row at the same time keep it twice, which does no harm.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmalign.atomic import PREFIX, make_parent, replacing
from mmalign.errors import TrainError

log = logging.getLogger("mmalign.train")

#: Bytes that parts may take which were not used lately; the ones unused longest go first.
SPARE_BYTES = 8 << 30
#: Seconds after its last use for which a part stays in any case: other runs may be reading from it.
IN_USE_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Numbers:
    """What is known of a row with S sides.

    `lengths` (S,) are tokens of prompt, media and answer, `counts` (S,) those of the answers alone. `logps` are the
    reference's log-probs of all answers' tokens, side after side, and `states` the inputs of its head for the first
    side's (M, H); None where it was not asked. States that were read stay in `part`.
    """

    lengths: Tensor
    counts: Tensor
    logps: Tensor | None = None
    states: Tensor | None = None
    part: Path | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts in `folder`, all of which hold rows of one form: same model, same processor, same sides."""

    folder: Path

    def write(self, rows: Mapping[str, Numbers]) -> None:
        """Keep rows, by their keys, as one part."""
        logps = [row.logps for row in rows.values() if row.logps is not None]
        tensors = {
            "lengths": torch.stack([row.lengths for row in rows.values()]),
            "counts": torch.stack([row.counts for row in rows.values()]),
            "scored": torch.tensor([row.logps is not None for row in rows.values()]),
            "logps": torch.cat(logps) if logps else torch.zeros(0),
        }
        tensors |= {f"states.{key}": row.states for key, row in rows.items() if row.states is not None}
        path = self.folder / f"part-{uuid.uuid4().hex}.safetensors"
        make_parent(path)
        with replacing(path) as partial:
            save_file(tensors, partial, metadata={"rows": " ".join(rows)})

    def read(self, keys: Collection[str]) -> dict[str, Numbers]:
        """Those of the rows `keys` that are there, without their states; a part that cannot be read is passed over."""
        found: dict[str, Numbers] = {}
        for path in sorted(self.folder.glob("part-*.safetensors")):
            try:
                rows = dict(_rows(path, keys))
            except FileNotFoundError:
                continue  # removed by another process
            except (SafetensorError, KeyError, OSError) as error:
                log.warning("%s: cannot be read (%s), so its rows are made again", path, error)
                continue
            # Of a row that is there twice, the one with log-probs.
            new = {key: row for key, row in rows.items() if key not in found or found[key].logps is None}
            found |= new
            if new:
                _touch(path)
        return found


def read_states(part: Path, key: str) -> Tensor:
    """The states (M, H) of a row in a part. Raises TrainError when the part was removed."""
    try:
        with safe_open(part, framework="pt") as file:
            states: Tensor = file.get_tensor(f"states.{key}")
    except FileNotFoundError:
        raise TrainError(f"{part}: what the reference said is gone; run the same command again to go on") from None
    _touch(part)
    return states


def trim(folder: Path) -> None:
    """Hold the parts below `folder` that nobody uses to `SPARE_BYTES`, and clear away what killed writers left."""
    idle = []
    for path in (*folder.rglob("part-*.safetensors"), *folder.rglob(f"{PREFIX}part-*.safetensors")):
        with suppress(FileNotFoundError):
            status = path.stat()
            if time.time() - status.st_mtime > IN_USE_S:
                idle.append((path.name.startswith(PREFIX), status.st_mtime, status.st_size, path))
    kept = 0
    for unfinished, _, size, path in sorted(idle, key=lambda entry: -entry[1]):
        if unfinished or kept + size > SPARE_BYTES:
            with suppress(FileNotFoundError, PermissionError):  # gone, or another user's
                path.unlink()
        else:
            kept += size


def _rows(path: Path, keys: Collection[str]) -> Iterator[tuple[str, Numbers]]:
    with safe_open(path, framework="pt") as file:
        names = (file.metadata() or {})["rows"].split()
        if not any(name in keys for name in names):
            return
        lengths, counts, scored, logps = (file.get_tensor(name) for name in ("lengths", "counts", "scored", "logps"))
    sizes = torch.where(scored, counts.sum(-1), 0).tolist()
    for row, (name, own) in enumerate(zip(names, torch.split(logps, sizes), strict=True)):
        if name in keys:
            yield name, Numbers(lengths[row], counts[row], own.clone() if scored[row] else None, part=path)


def _touch(path: Path) -> None:
    with suppress(FileNotFoundError, PermissionError):
        os.utime(path)
