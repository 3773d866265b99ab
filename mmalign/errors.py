"""The errors that leave mmalign. Each message is one line that names the file, row or key, the value and the remedy."""

from __future__ import annotations


class MMAlignError(Exception):
    """Something the user can mend; the command line prints it without a traceback."""


class MediaError(MMAlignError):
    """A picture or clip cannot be used. The sample goes to quarantine with this reason; the run goes on."""


class DataError(MMAlignError):
    """A folder or file of samples cannot be read, or a row in it is wrong."""


class RecipeError(MMAlignError):
    """A recipe key or value is wrong."""


class ModelError(MMAlignError):
    """A model cannot be loaded or cannot do what was asked of it."""


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
