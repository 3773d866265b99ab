"""The command line: `mmalign VERB ...`. Parsing and dispatch only; what a verb does lives in a module of its own."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mmalign.errors import Interrupted, MMAlignError

RECIPE_VERBS = {
    "run": "pairs, training, controls, evaluation and page in one go; goes on where it was",
    "generate": "only make the pairs of a recipe",
    "train": "only train on the pairs that are there",
    "evaluate": "only measure before, after and controls",
}

#: How long a launcher may take to end all processes when one of them failed.
SECONDS_TO_END = 5.0


def parser() -> argparse.ArgumentParser:
    """The parser of all verbs; keys of a recipe are left to `mmalign.recipe`."""
    top = argparse.ArgumentParser(prog="mmalign", description="Vision and text language models that align themselves.")
    top.add_argument("--version", action="store_true", help="print the version")
    verbs = top.add_subparsers(dest="verb", metavar="VERB")

    for verb, text in RECIPE_VERBS.items():
        sub = verbs.add_parser(
            verb,
            help=text,
            description=f"{text}.",
            usage=f"mmalign {verb} RECIPE [--dry-run] [--section.key VALUE ...]",
            epilog="Every key of the recipe is a flag; `--dry-run` prints all keys with their values.",
            allow_abbrev=False,
            add_help=False,
        )
        sub.add_argument("-h", "--help", action="store_true", help="with a RECIPE: all of its keys")
        sub.add_argument(
            "recipe", type=Path, nargs="?", metavar="RECIPE", help="a YAML file, such as recipes/image/stic.yaml"
        )
        _dry_run(sub)

    demo = verbs.add_parser(
        "demo", help="the whole loop on the embedded model, in minutes, offline", allow_abbrev=False
    )
    demo.add_argument("--method", help="self_consistency (default), stic or apasi; with --video rrpo, dpo or temple")
    demo.add_argument("--video", action="store_true", help="on drawn clips: RRPO, DPO and TEMPLE side by side")
    demo.add_argument("--seeds", type=int, default=1, help="number of runs with seeds 0, 1, ... (default 1)")
    demo.add_argument("--output", type=Path, default=Path("runs/demo"), help="where runs go (default runs/demo)")
    _dry_run(demo)

    inspect = verbs.add_parser("inspect", help="write the page of a run", allow_abbrev=False)
    inspect.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    inspect.add_argument("--out", type=Path, default=None, help="the page (default RUN/report.html)")
    inspect.add_argument("--max-pairs", type=int, default=200, help="pairs on the page (default 200)")
    _dry_run(inspect)

    merge = verbs.add_parser("merge", help="make a run's adapter part of the weights", allow_abbrev=False)
    merge.add_argument("run", type=Path, metavar="RUN", help="a run directory with a trained adapter, which stays")
    merge.add_argument("--out", type=Path, default=None, help="the folder of the whole model (default RUN/merged)")
    _dry_run(merge)

    prepare = verbs.add_parser("prepare", help="turn a folder or a file into samples", allow_abbrev=False)
    prepare.add_argument(
        "kind",
        choices=["images", "videos", "text"],
        help="pictures or videos in a folder, or prompts in JSON lines",
    )
    prepare.add_argument("source", type=Path, metavar="SOURCE", help="the folder or the file")
    prepare.add_argument("--output", type=Path, required=True, help="the Parquet file to write")
    prepare.add_argument("--prompt", default="", help="a prompt for every sample")
    _dry_run(prepare)

    show = verbs.add_parser("list", help="methods, objectives, corruptions", allow_abbrev=False)
    show.add_argument("what", nargs="?", choices=["methods", "objectives", "corruptions"], help="only one of them")
    _dry_run(show)

    doctor = verbs.add_parser("doctor", help="what is installed, what really loads, and what to do", allow_abbrev=False)
    _dry_run(doctor)
    return top


def _dry_run(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--dry-run", action="store_true", help="say what would be done; write nothing")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. 0: done; 2: a mistake of the user, told in one line; 130: interrupted."""
    top = parser()
    args, flags = top.parse_known_args(argv)
    if args.version:
        from importlib.metadata import version

        print(f"mmalign {version('mmalign')}")
        return 0
    if args.verb is None:
        top.print_help()
        return 2
    try:
        if flags and args.verb not in RECIPE_VERBS:
            raise MMAlignError(_unknown_flag(flags[0], top, args.verb))
        return _dispatch(args, flags, argv)
    except Interrupted as error:
        print(f"mmalign: {error}", file=sys.stderr)
        return 130
    except MMAlignError as error:
        _let_first_speak()
        print(f"mmalign: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = error.filename or "a file"
        print(f"mmalign: {where}: {error.strerror or error}; what is done is kept", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mmalign: interrupted; what is done is kept, run the same command again to go on", file=sys.stderr)
        return 130


def _let_first_speak() -> None:
    """Give the launcher the time to end this process, should the first one have failed by the same mistake."""
    if int(os.environ.get("RANK", "0")):
        time.sleep(SECONDS_TO_END)


def _unknown_flag(flag: str, top: argparse.ArgumentParser, verb: str) -> str:
    known = [
        option for action in _sub(top, verb)._actions for option in action.option_strings if option.startswith("--")
    ]
    near = difflib.get_close_matches(flag.partition("=")[0], known, n=1, cutoff=0.0)
    return f"{verb}: {flag}: unknown flag, did you mean {near[0]}?"


def _sub(top: argparse.ArgumentParser, verb: str) -> argparse.ArgumentParser:
    found: argparse.ArgumentParser = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction)).choices[
        verb
    ]
    return found


def _first_words(argv: Sequence[str] | None) -> list[str]:
    """The verb and what follows it up to the first flag with a value: the recipe has to be among these words."""
    words: list[str] = []
    for word in sys.argv[1:] if argv is None else argv:
        if word.startswith("--") and word not in ("--dry-run", "--help"):
            break
        words.append(word)
    return words


def _dispatch(args: argparse.Namespace, flags: Sequence[str], argv: Sequence[str] | None) -> int:
    is_launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if is_launched and args.verb == "demo":
        raise MMAlignError("demo: runs in one process; start it without `accelerate launch`")
    if is_launched and int(os.environ["RANK"]) and (args.verb not in RECIPE_VERBS or args.dry_run or args.help):
        return 0  # the first process does it
    if args.verb in RECIPE_VERBS:
        from mmalign.cli import recipes

        if args.recipe is None or str(args.recipe) not in _first_words(argv):
            if args.help:
                _sub(parser(), args.verb).print_help()
                return 0
            raise MMAlignError(
                f"{args.verb}: give the recipe first: mmalign {args.verb} RECIPE [--section.key VALUE ...]"
            )
        if args.help:
            return recipes.print_keys(args.recipe)
        return recipes.main(args.verb, args.recipe, flags, dry_run=args.dry_run)
    if args.verb == "demo":
        from mmalign.cli import demo

        return demo.main(args.method, video=args.video, num_seeds=args.seeds, output=args.output, dry_run=args.dry_run)
    if args.verb == "inspect":
        from mmalign.cli import inspect

        return inspect.main(args.run, args.out, max_pairs=args.max_pairs, dry_run=args.dry_run)
    if args.verb == "merge":
        from mmalign.cli import merge

        return merge.main(args.run, args.out, dry_run=args.dry_run)
    if args.verb == "prepare":
        from mmalign.cli import prepare

        return prepare.main(args.kind, args.source, args.output, prompt=args.prompt, dry_run=args.dry_run)
    if args.verb == "list":
        from mmalign.cli import listing

        return listing.main(args.what)
    from mmalign.cli import doctor

    return doctor.main()
