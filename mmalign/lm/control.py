"""What steers a chat, and the text that must not: control tokens, and the words by which a template begins a turn.

Somebody else's text must stay text. Three things are looked at. The letters: no text may spell a control token. The
words: where a template marks turns with plain words (LLaVA 1.5 writes "USER:" and "ASSISTANT:"), no text may hold
them. And the tokens: the rendered chat must come out with the very control tokens, in order, that harmless text of the
same shape has. The last one sees whatever the first two cannot: letters that a normaliser turns into a token, and
tokens that grow together from a text and what the template writes beside it.

Words of a plain template in other letters ("user :") steer a model as well as any request does. No renderer can tell.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from mmalign.errors import SampleError
from mmalign.lm.marks import runs
from mmalign.lm.template import Scaffold
from mmalign.types import Message

#: Shapes of chats that are kept.
_MAX_SHAPES = 1024


class Control:
    """The control tokens and turn words of one tokenizer and chat template.

    Control tokens are those that tokenizer, processor or config name for a role (end, image, ...), those that are added
    as special, and added ones of any kind that the template writes between turns or around media. The token for
    unknown text is none unless it has another role.

    Args:
        tokenizer: a fast one of transformers.
        processor: what else has tokens for a role; the tokenizer itself for a text-only model.
        media: ids of tokens that stand for media.
        scaffold: what the chat template writes beside texts.
        end: the token that ends a turn.

    Attributes:
        ids: ids of the control tokens.
        spelled: their letters, the longest first.
    """

    def __init__(
        self,
        tokenizer: Any,
        processor: Any,
        media: Iterable[int],
        scaffold: Scaffold,
        end: str,
    ) -> None:
        added = [(token.content, token.special) for token in tokenizer.added_tokens_decoder.values()]
        written = [*scaffold.around, *scaffold.between]
        roles = {*_named(tokenizer), *_named(processor), *tokenizer.all_special_tokens, end}
        roles |= {token for number in media if isinstance(token := tokenizer.convert_ids_to_tokens(number), str)}
        roles |= {token for token, special in added if special or _steers(token, written)}
        pad = tokenizer.pad_token or ""
        if _is_plain(pad) and pad not in (end, tokenizer.eos_token, tokenizer.bos_token):
            roles.discard(pad)  # some models are padded with "!" or a word, which texts may well hold
        self.spelled = tuple(
            sorted({token for token in roles if token.strip()}, key=lambda token: (-len(token), token))
        )
        unknown = tokenizer.unk_token
        if unknown not in (end, tokenizer.eos_token, tokenizer.bos_token) and not _steers(unknown or "", written):
            roles.discard(unknown)  # it stands for letters that the tokenizer does not know, which is no control
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        self._names = {vocabulary[token]: token for token in roles if token in vocabulary and token.strip()}
        self.ids = frozenset(self._names)
        plain = {text for text in scaffold.between if text.strip() and not any(token in text for token in self.spelled)}
        self._words = [_as_words(text) for text in sorted(plain)]
        self._shapes: dict[Hashable, tuple[int, ...]] = {}

    def refuse(self, turns: Sequence[Message]) -> None:
        """Raises SampleError where a turn's text spells a control token or a word that begins a turn.

        Texts that no picture or clip parts are read as one: a token must not be split over two of them either.
        """
        for turn in turns:
            for text in runs(turn):
                if (found := next((token for token in self.spelled if token in text), None)) is not None:
                    raise SampleError(f"the {turn.role} text contains the model's control token {found!r}: remove it")
                if word := next((match for words in self._words if (match := words.search(text))), None):
                    raise SampleError(
                        f"the {turn.role} text contains {word[0].strip()!r}, with which the model's chat template "
                        "begins a turn: remove it"
                    )

    def compare(self, ids: Sequence[int], shape: Hashable, harmless: Callable[[], Sequence[int]]) -> None:
        """Raises SampleError unless tokens of a rendered chat have the control tokens that harmless text gives.

        `harmless` makes the tokens of such a chat; it is called once for each `shape`.
        """
        if shape not in self._shapes:
            if len(self._shapes) >= _MAX_SHAPES:
                self._shapes.clear()
            self._shapes[shape] = self.steps(harmless())
        found = self.steps(ids)
        if found == self._shapes[shape]:
            return
        more = Counter(found) - Counter(self._shapes[shape])
        less = Counter(self._shapes[shape]) - Counter(found)
        what, number = ("makes", next(iter(more))) if more else ("removes", next(iter(less or found)))
        raise SampleError(
            f"a text of the chat {what} the model's control token {self._names[number]!r} once it is read as tokens, "
            "beside what stands next to it: change it"
        )

    def steps(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The control tokens among `ids`, in order."""
        return tuple(number for number in ids if number in self.ids)


def _named(owner: Any) -> list[str]:
    """The tokens that a tokenizer or processor has a role for: its attributes `image_token` and the like."""
    names = [name for name in dir(owner) if name.endswith("_token")]
    return [token for name in names if isinstance(token := getattr(owner, name, None), str) and token]


def _steers(token: str, written: Sequence[str]) -> bool:
    """Whether a template writes a token that was not added as special, and as a mark: not white space or a word."""
    return not _is_plain(token) and any(token in text for text in written if token.strip())


def _is_plain(token: str) -> bool:
    """Whether a token is a word or a sign of ordinary text."""
    return len(token) <= 2 or token.strip().isalnum()


def _as_words(text: str) -> re.Pattern[str]:
    """The words of a template as they begin a turn: at the start of a line where the template has them there, else
    anywhere but within a longer word ("SUPERUSER:").
    """
    start = r"(?:^|\n)\s*" if text[: len(text) - len(text.lstrip())].count("\n") else r"(?<![^\W\d_])"
    return re.compile(start + re.escape(text.strip()))
