"""`mmalign doctor`: what is installed, what really loads, the limits in force, and the remedy for each problem."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from mmalign.cli.doctor import child, limits, machine, packages
from mmalign.cli.doctor.findings import Finding
from mmalign.cli.doctor.table import show


def main(*, as_json: bool = False, dry_run: bool = False) -> int:
    """Print the findings; 1 when something that mmalign needs is broken, 0 otherwise."""
    found = findings(quick=dry_run)
    if as_json:
        is_well = not any(finding.status == "broken" for finding in found)
        print(json.dumps({"well": is_well, "findings": [asdict(finding) for finding in found]}, indent=2))
    else:
        show(found)
    return 1 if any(finding.status == "broken" for finding in found) else 0


def findings(*, quick: bool = False) -> list[Finding]:
    """All findings. `quick` loads nothing, so it says only what is installed."""
    installed = packages.installed()
    stopping = threading.Event()
    with ThreadPoolExecutor() as pool:
        try:
            groups = [] if quick else packages.groups(installed)
            loading = [pool.submit(child.run, group, stopping=stopping) for group in groups]
            here = [*machine.findings(), *limits.findings()]
            loaded = {name: outcome for future in loading for name, outcome in future.result().items()}
        finally:
            stopping.set()  # after Ctrl-C nobody waits for the trials
    return [*packages.findings(installed, loaded), *here]
