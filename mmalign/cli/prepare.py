"""`mmalign prepare`: a folder of pictures or a file of prompts becomes samples."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from mmalign.errors import DataError


def main(kind: str, source: Path, output: Path, *, prompt: str, dry_run: bool) -> int:
    """Write the samples and say what was taken and what was not."""
    from mmalign.prepare import prepare_images, prepare_text
    from mmalign.samples import json_lines, list_pictures

    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    if dry_run:
        num = len(list_pictures(source).pictures) if kind == "images" else sum(1 for _ in json_lines(source))
        print(f"would read {num} {'pictures' if kind == 'images' else 'prompts'} from {source} and write {output}")
        return 0
    if kind == "text":
        print(prepare_text(source, output))
        return 0
    bar = Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True))
    with bar:
        task = bar.add_task("", total=None)
        done = prepare_images(
            source, output, prompt=prompt, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    print(done)
    return 0
