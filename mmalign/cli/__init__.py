"""The command line: `mmalign VERB ...`. Parsing and dispatch only; what a verb does lives in a module of its own."""

from __future__ import annotations

import argparse
import difflib
import io
import os
import select
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mmalign.errors import Interrupted, MMAlignError, one_line

RECIPE_VERBS = {
    "run": "pairs, training, controls, evaluation and page in one go; goes on where it was",
    "generate": "only make the pairs of a recipe",
    "train": "only train on the pairs that are there",
    "evaluate": "only measure before, after and controls",
}

#: Formats that `convert` writes, and that it reads.
TARGETS = ("trl", "llamafactory", "swift", "mmalign")
SOURCES = (*TARGETS, "rlaif-v", "rrpo")

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

    convert = verbs.add_parser("convert", help="pairs to and from TRL, LLaMA-Factory and ms-swift", allow_abbrev=False)
    convert.add_argument("source", type=Path, metavar="SOURCE", help="a run, a pair file, or data of another tool")
    convert.add_argument("--to", required=True, choices=TARGETS, help="the format to write")
    convert.add_argument("--output", type=Path, required=True, metavar="OUT", help="the folder to write, new or empty")
    convert.add_argument("--from", dest="given", default="auto", choices=["auto", *SOURCES], help="what SOURCE holds")
    convert.add_argument("--media-root", type=Path, help="the folder that media paths of SOURCE start from")
    convert.add_argument("--copy-media", action="store_true", help="put the media into OUT, too")
    convert.add_argument("--frames", action="store_true", help="for TRL: clips as pictures of their frames")
    convert.add_argument("--skip-unfit", action="store_true", help="leave out pairs that do not fit, and count them")
    _dry_run(convert)

    card = verbs.add_parser("card", help="cards of a run's pairs and model, from its record", allow_abbrev=False)
    card.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    card.add_argument("--output", type=Path, help="where the cards go (default RUN/cards)")
    card.add_argument("--license", help="the licence to name; none is named without it")
    _dry_run(card)

    push = verbs.add_parser("push", help="upload a run's pairs or model to a hub, on request only", allow_abbrev=False)
    push.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    push.add_argument("--to", required=True, metavar="NAMESPACE/NAME", help="the repository, made if need be")
    what = push.add_mutually_exclusive_group(required=True)
    what.add_argument("--pairs", dest="what", action="store_const", const="pairs", help="a data set of the pairs")
    what.add_argument("--model", dest="what", action="store_const", const="model", help="the trained model or adapter")
    push.add_argument("--public", action="store_true", help="make the repository public; it is private otherwise")
    push.add_argument("--with-media", action="store_true", help="upload the pictures and clips, too")
    push.add_argument("--license", help="the licence to name on the card; none is named without it")
    _dry_run(push)

    show = verbs.add_parser("list", help="methods, objectives, corruptions", allow_abbrev=False)
    show.add_argument("what", nargs="?", choices=["methods", "objectives", "corruptions"], help="only one of them")
    _dry_run(show)

    doctor = verbs.add_parser("doctor", help="what is installed, what really loads, and what to do", allow_abbrev=False)
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    _dry_run(doctor)
    return top


def _dry_run(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--dry-run", action="store_true", help="say what would be done; write nothing")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. 0: done; 2: a mistake of the user, told in one line; 130: interrupted; 141: nobody reads on."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what is told must not hang on what a terminal can show
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
        status = _dispatch(args, flags, argv)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except Interrupted as error:
        print(f"mmalign: {error}", file=sys.stderr)
        return 130
    except MMAlignError as error:
        _let_first_speak()
        print(f"mmalign: {error}", file=sys.stderr)
        return 2
    except UnicodeEncodeError as error:
        told = f"mmalign: {error.object[:200]}: is not UTF-8, as names in files of mmalign must be; rename it"
        print(one_line(told), file=sys.stderr)
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 141
        where = error.filename or "a file"
        print(one_line(f"mmalign: {where}: {error.strerror or error}; what is done is kept"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mmalign: interrupted; what is done is kept, run the same command again to go on", file=sys.stderr)
        return 130


def _nobody_reads() -> bool:
    """Whether whoever read what is printed has seen enough; what is left to print then goes nowhere."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    is_gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if is_gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return is_gone


def _let_first_speak() -> None:
    """Give the launcher the time to end this process, should the first one have failed by the same mistake."""
    if os.environ.get("RANK", "0").strip("0"):
        time.sleep(SECONDS_TO_END)


def _launched() -> tuple[int, int]:
    """Which of how many processes this is, as a launcher tells it. Raises MMAlignError for what none tells."""
    rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        return 0, 1
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise MMAlignError(
            f"environment: WORLD_SIZE is {size}, RANK is {rank or 'not set'}; `accelerate launch` sets both, "
            "otherwise unset WORLD_SIZE"
        )
    return int(rank), int(size)


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
    number, num = _launched()
    if num > 1 and args.verb == "demo":
        raise MMAlignError("demo: runs in one process; start it without `accelerate launch`")
    if number and (args.verb not in RECIPE_VERBS or args.dry_run or args.help):
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
    return VERBS[args.verb](args)


def _demo(args: argparse.Namespace) -> int:
    from mmalign.cli import demo

    return demo.main(args.method, video=args.video, num_seeds=args.seeds, output=args.output, dry_run=args.dry_run)


def _inspect(args: argparse.Namespace) -> int:
    from mmalign.cli import inspect

    return inspect.main(args.run, args.out, max_pairs=args.max_pairs, dry_run=args.dry_run)


def _merge(args: argparse.Namespace) -> int:
    from mmalign.cli import merge

    return merge.main(args.run, args.out, dry_run=args.dry_run)


def _prepare(args: argparse.Namespace) -> int:
    from mmalign.cli import prepare

    return prepare.main(args.kind, args.source, args.output, prompt=args.prompt, dry_run=args.dry_run)


def _convert(args: argparse.Namespace) -> int:
    from mmalign.cli import convert

    return convert.main(
        args.source,
        to=args.to,
        output=args.output,
        given=args.given,
        media_root=args.media_root,
        copies=args.copy_media,
        frames=args.frames,
        skips=args.skip_unfit,
        dry_run=args.dry_run,
    )


def _card(args: argparse.Namespace) -> int:
    from mmalign.cli import card

    return card.main(args.run, args.output, license=args.license, dry_run=args.dry_run)


def _push(args: argparse.Namespace) -> int:
    from mmalign.cli import push

    return push.main(
        args.run,
        args.to,
        what=args.what,
        is_public=args.public,
        with_media=args.with_media,
        license=args.license,
        dry_run=args.dry_run,
    )


def _list(args: argparse.Namespace) -> int:
    from mmalign.cli import listing

    return listing.main(args.what)


def _doctor(args: argparse.Namespace) -> int:
    from mmalign.cli import doctor

    return doctor.main(as_json=args.json, dry_run=args.dry_run)


#: What runs each verb that takes no recipe. Modules are loaded when their verb is asked for.
VERBS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "demo": _demo,
    "inspect": _inspect,
    "merge": _merge,
    "prepare": _prepare,
    "convert": _convert,
    "card": _card,
    "push": _push,
    "list": _list,
    "doctor": _doctor,
}
