"""The way to a hub, through `huggingface_hub`: a repository that is private unless asked otherwise, commits that may be
repeated, and one clear line for what goes wrong.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from mmalign.cards.upload import File
from mmalign.errors import Interrupted, StoreError

T = TypeVar("T")

#: Files of one commit; a commit is there as a whole or not at all.
FILES_PER_COMMIT = 500
#: Seconds before each further try after a failure that may pass.
WAITS = (1.0, 4.0, 15.0)


def check_token() -> None:
    """Raises StoreError, one line, where a push has no token or may not go online."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise StoreError("push: HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it")
    if not get_token():
        raise StoreError("push: there is no token of the hub; `hf auth login` stores one, or set HF_TOKEN")


def push(
    files: Sequence[File],
    to: str,
    *,
    kind: str,
    is_public: bool = False,
    progress: Callable[[int], None] = lambda done: None,
    wait: Callable[[float], None] = time.sleep,
) -> str:
    """Upload files to the repository `to` of `kind` "dataset" or "model"; returns its address.

    The repository is made if need be. The card comes last, so an upload that was interrupted shows none; done again, it
    sends what the hub has not got. Raises StoreError, one line, and Interrupted.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api: Any = HfApi()
    with _explained(to):
        address = _patient(lambda: api.create_repo(to, repo_type=kind, private=not is_public, exist_ok=True), wait)
        if not is_public and not _patient(lambda: api.repo_info(to, repo_type=kind), wait).private:
            raise StoreError(f"push: {to} is there already and is public; give --public if that is meant")
        ordered = sorted(files, key=lambda file: file.path == "README.md")
        for start in range(0, len(ordered), FILES_PER_COMMIT):
            some = ordered[start : start + FILES_PER_COMMIT]

            def commit(some: Sequence[File] = some) -> Any:
                added = [CommitOperationAdd(file.path, _content(file)) for file in some]
                return api.create_commit(to, added, repo_type=kind, commit_message="Upload by mmalign")

            _patient(commit, wait)
            progress(start + len(some))
    return str(address)


def _content(file: File) -> bytes | str:
    return file.content if isinstance(file.content, bytes) else str(file.content)


def _patient(ask: Callable[[], T], wait: Callable[[float], None]) -> T:
    """What `ask` gives, asked again where the hub or the way to it failed for a moment."""
    for seconds in WAITS:
        try:
            return ask()
        except Exception as error:
            if not _may_pass(error):
                raise
            wait(seconds)
    return ask()


def _may_pass(error: Exception) -> bool:
    status = _status(error)
    return status in (408, 429) or status >= 500 if status else _is_of_the_network(error)


def _status(error: Exception) -> int:
    """The HTTP status that an error carries; 0 where it carries none."""
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def _is_of_the_network(error: BaseException) -> bool:
    """Also errors of the HTTP client, which is a matter of `huggingface_hub`'s and may change."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, ConnectionError | TimeoutError) or bool(kinds & {"TransportError", "RequestException"})


@contextmanager
def _explained(to: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"push: interrupted; what {to} has got stays there, the same command sends the rest"
        ) from None
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(f"push: {to}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    status, told = _status(error), (" ".join(str(error).split()) or type(error).__name__)[:200]
    if status == 401:
        return "the hub does not know the token (401); `hf auth login` stores another one"
    if status == 403:
        return "the token may not write there (403); make one with the right to write, or name a namespace of yours"
    if type(error).__name__ == "HFValidationError":
        return f"is no name of a repository, which is NAMESPACE/NAME ({told})"
    if _may_pass(error):
        return f"the hub could not be reached or failed ({told}); the same command sends the rest"
    if isinstance(error, OSError) and error.filename:
        return f"{os.fspath(error.filename)}: {error.strerror}"
    return f"the hub refused it ({told})"
