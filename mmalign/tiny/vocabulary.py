"""The tokenizer of the embedded model: whole words of the toy language and the prompt pools, bytes for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mmalign.text import prompts
from mmalign.tiny.clips import DIRECTIONS
from mmalign.tiny.language import NUMBERS
from mmalign.tiny.world import COLOURS, KINDS, PLACES, SIZES

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD: Final = "<|pad|>"
END: Final = "<|end|>"
ROLES: Final = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
VISION_START: Final = "<|vision_start|>"
VISION_END: Final = "<|vision_end|>"
IMAGE_PAD: Final = "<|image_pad|>"
VIDEO_PAD: Final = "<|video_pad|>"
SPECIAL: Final = (PAD, END, *ROLES.values(), VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD)

_TOY: Final = """
There is are also a an and The the First first Then then Last last Finally finally start Is Are there True
true this that for picture video clip image photo text Text Describe Answer answer yes no Yes No What what
colour color Where where How how many things thing in on at of left right above below big small big or small
Nothing nothing happens happen before after moves move appears appear disappears disappear turns turn to up
down seconds frames frame step zero
"""

_COMMON: Final = """
I you it they he she we me my your their its not never only very more less most than but if so because when
while can could should would will do does did has have had was were be been by from with without about into
over under which who why all any both each every other another same different new good bad better best worse
worst correct wrong right false question response statement claim caption description assistant user score
rate one two list name count people person man woman child dog cat car street water sky ground green field
shows show seen see look looks give given write tell explain say says said find short long detailed brief
clear exactly following based according between likely real sure please help helpful image images pictures
videos object objects scene place background foreground time end begin sentence word words options option A B
C D E The This That These Those It In On At They You If Do Does Can Which Who Why When Please Tell Give Name
List Rate Choose Compare Based Look Read Write Explain Say Here Question Response Caption Statement Score Yes,
No,
"""


def _variants(word: str) -> set[str]:
    capital = word[:1].upper() + word[1:]
    return {word, f" {word}", capital, f" {capital}"}


#: The prompts that the shipped weights were trained on. A prompt added elsewhere leaves the vocabulary as it is.
_PROMPTS: Final = (
    *prompts.DETAIL,
    *prompts.PLAIN,
    prompts.STEP_BY_STEP,
    *prompts.IMAGINE,
    *prompts.BRIEF,
    prompts.LIST_OBJECTS,
    prompts.IS_THERE,
    prompts.IS_TRUE,
    prompts.YES_OR_NO,
    *prompts.TELL,
    prompts.ASK_SPATIAL,
    prompts.ASK_TEMPORAL,
    prompts.CRITIQUE,
    prompts.REVISE,
    prompts.SAME_MEANING,
)


def words() -> list[str]:
    """Every whole-word token, with and without the space before it, in alphabetical order."""
    from tokenizers.pre_tokenizers import ByteLevel

    found: set[str] = set()
    toy = {*KINDS, *(f"{kind}s" for kind in KINDS), *COLOURS, *SIZES, *NUMBERS}
    toy |= {word for text in (*PLACES, *DIRECTIONS) for word in text.split()} | set(_TOY.split())
    for word in toy:
        found |= _variants(word)
    for word in _COMMON.split():
        found |= {word.strip(","), f" {word.strip(',')}"}
    split = ByteLevel(add_prefix_space=False)
    encoded = {piece for word in found for piece, _ in split.pre_tokenize_str(word)}
    for text in _PROMPTS:
        encoded |= {piece for piece, _ in split.pre_tokenize_str(text)}
    return sorted(encoded)


def build_tokenizer() -> Tokenizer:
    """A byte-level BPE in which a known word is one token, digits stand alone and any text can be written in bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = [word for word in words() if word not in set(alphabet)]
    vocabulary = {piece: at for at, piece in enumerate([*alphabet, *known])}
    # With `ignore_merges` a word of the vocabulary is taken whole, so no merges are needed.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer
