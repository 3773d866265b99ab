"""`mmalign prepare`: a folder of pictures or videos, or a file of prompts, becomes samples."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from mmalign.errors import DataError


def main(kind: str, source: Path, output: Path, *, prompt: str, dry_run: bool) -> int:
    """Write the samples and say what was taken and what was not."""
    from mmalign.prepare import check_output, listed, prepare_images, prepare_text, prepare_videos
    from mmalign.samples import json_lines

    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    if dry_run:
        if kind == "text":
            check_output(output)
            num, what = sum(1 for _ in json_lines(source)), "prompts"
        elif kind == "images":
            num, what = len(listed(source, output, "image").files), "pictures"
        else:
            num, what = len(listed(source, output, "video").files), "videos"
        print(f"would read {num} {what} from {source} and write {output}")
        return 0
    if kind == "text":
        print(prepare_text(source, output))
        return 0
    bar = Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True))
    with bar:
        task = bar.add_task("", total=None)
        prepare = prepare_images if kind == "images" else prepare_videos
        done = prepare(
            source, output, prompt=prompt, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    print(done)
    return 0
