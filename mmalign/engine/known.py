"""Samples known by numbers: what a journal says of a million of them is looked up in a few arrays.

A sample id is known by 64 bits of its BLAKE2b digest, its `key`. Among a million ids some two have the same key with a
probability of 3e-8; they would be taken for one id given twice, and refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self, TypeAlias

import numpy as np
import numpy.typing as npt

Numbers: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]


def key_of(sample_id: str) -> int:
    """The key of a sample id, as a signed number."""
    return int.from_bytes(hashlib.blake2b(sample_id.encode(), digest_size=8).digest(), "little", signed=True)


def keys_of(sample_ids: Iterable[str]) -> Numbers:
    return np.fromiter(map(key_of, sample_ids), np.int64)


@dataclass(frozen=True, slots=True)
class Known:
    """Journalled outcomes of one phase, one place in each array for one outcome (25 bytes), sorted by key.

    `prints` are fingerprints, `seqs` the numbers of the outcomes, `statuses` places in `journal.STATUSES`.
    """

    keys: Numbers
    prints: Numbers
    seqs: Numbers
    statuses: npt.NDArray[np.int8]

    @classmethod
    def of(cls, rows: Iterable[list[tuple[int, int, int, int]]]) -> Self:
        """From batches of (key, fingerprint, number, status) in any order."""
        parts = [np.array(batch, np.int64) for batch in rows]
        table = np.concatenate([*parts, np.empty((0, 4), np.int64)])
        order = np.argsort(table[:, 0], kind="stable")
        table = table[order]
        keys, prints, seqs = (table[:, column].copy() for column in range(3))
        return cls(keys, prints, seqs, table[:, 3].astype(np.int8))

    def places(self, keys: Numbers) -> Numbers:
        """Where each key stands, -1 for those that are not known."""
        if not len(self.keys):
            return np.full(len(keys), -1)
        places = np.minimum(self.keys.searchsorted(keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, places, -1)


class Wants:
    """Which outcomes belong to samples of the data; the journal may hold samples that left it.

    Args:
        last_seq: Outcomes up to this number are of earlier starts and wanted only once marked; later ones always are.
    """

    def __init__(self, last_seq: int) -> None:
        self.last_seq = last_seq
        self._marked = np.zeros(last_seq + 1, np.bool_)

    def mark(self, seqs: Numbers) -> None:
        self._marked[seqs] = True

    def among(self, seqs: Numbers) -> Flags:
        """Which of these numbers are wanted."""
        return (seqs > self.last_seq) | self._marked[np.minimum(seqs, self.last_seq)]

    def __call__(self, seq: int) -> bool:
        return seq > self.last_seq or bool(self._marked[seq])
