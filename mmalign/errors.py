"""The errors that leave mmalign. Each message is one line that names the file, row or key, the value and the remedy."""

from __future__ import annotations

import re
from typing import Final

#: Longer messages lose their middle: a value may be a name or a text of any length.
MAX_MESSAGE: Final = 4000

#: Control characters, line and paragraph separators, marks that turn the direction of writing, and halves of
#: characters: what would break a line, act on a terminal, or not be printed at all.
_UNPRINTED: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def one_line(text: str) -> str:
    r"""A text of bounded length that every terminal and file takes as one line; a line break shows as `\n`."""
    return _cut(_UNPRINTED.sub(lambda found: ascii(found[0])[1:-1], _cut(text)))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE // 2]} ... {text[5 - MAX_MESSAGE // 2 :]}"


class MMAlignError(Exception):
    """Something the user can mend; the command line prints it without a traceback."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class MediaError(MMAlignError):
    """A picture or clip cannot be used. The sample goes to quarantine with this reason; the run goes on."""


class DataError(MMAlignError):
    """A folder or file of samples cannot be read, or a row in it is wrong."""


class RecipeError(MMAlignError):
    """A recipe key or value is wrong."""


class ModelError(MMAlignError):
    """A model cannot be loaded or cannot do what was asked of it."""


class ServerError(MMAlignError):
    """A server does not answer. That is no sample's fault: the run stops, and goes on when it is started again."""


class StoreError(MMAlignError):
    """A run directory cannot be used: locked, from another recipe, full or unreadable."""


class SampleError(MMAlignError):
    """One sample cannot be used by a method (for example, no claim could be judged); it goes to quarantine."""


class NoPair(MMAlignError):
    """A method looked at a good sample and found nothing to prefer; counted with its reason, not quarantined."""


class TrainError(MMAlignError):
    """Training cannot go on: pairs that do not fit, a loss that is no number, a checkpoint of another run."""


class Interrupted(MMAlignError):
    """The run was asked to stop (Ctrl-C, SIGTERM); what is done is kept."""
