"""From what a recipe says about the model to the model itself, on this machine or behind a server."""

from __future__ import annotations

from mmalign.lm.protocol import LM
from mmalign.lm.spec import ModelSpec, ServerSpec


def open_lm(model: ModelSpec, *, batch_size: int, server: ServerSpec | None = None) -> LM:
    """The model behind the three verbs, ready to be asked; the caller awaits its `close`.

    Args:
        model: What to load. With a server it is only the name that the server is asked for, unless `server.model` is.
        batch_size: Most requests that a model on this machine answers at once.
        server: Where the model is served; None, or a spec without a `url`, loads it here.

    Raises ModelError when the model cannot be loaded, RecipeError for a server that cannot be asked (a library that is
    missing, an address or a key that is wrong). A server is asked for the first time when the first verb is.
    """
    if server is not None and server.url is not None:
        from mmalign.lm.server import ServerLM

        return ServerLM(server, model=server.model or model.name)

    from mmalign.lm.load import load_model  # loads torch
    from mmalign.lm.local import LocalLM

    return LocalLM(load_model(model), max_batch_size=batch_size)
