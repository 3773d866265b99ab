"""`python -m tests.fuzz SEED NUMBER`: write that file here and say what becomes of it. `SEED FIRST LAST`: run many."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.fuzz.corpus import made
from tests.fuzz.crew import verdicts


def main(seed: int, first: int, last: int | None = None) -> int:
    with tempfile.TemporaryDirectory() as place:
        if last is None:
            case = made(seed, first, Path(place))
            path = Path(f"hostile-{seed}-{first}{Path(case.name).suffix}")
            path.write_bytes(case.content)
            print(f"{case}: written to {path}, {len(case.content)} bytes, door {case.door}")
        counts: Counter[tuple[str, str]] = Counter()
        most: dict[str, int] = {}
        for row in verdicts(seed, range(first, (last or first) + 1), Path(place)):
            counts[row["kind"], row["told"]] += 1
            for key in ("kib", "decoder_kib"):
                most[key] = max(most.get(key, 0), row.get(key, 0))
            if row["told"] == "bug" or last is None or "-v" in sys.argv:
                print(
                    f"{row['told']}: {row['case']}: {row['reason']} [{row.get('kib')}, {row.get('decoder_kib')} kB]",
                    flush=True,
                )
    print(dict(sorted(counts.items())), most)
    return 1 if any(told == "bug" for _, told in counts) else 0


if __name__ == "__main__":
    sys.exit(main(*(int(word) for word in sys.argv[1:] if word != "-v")))
