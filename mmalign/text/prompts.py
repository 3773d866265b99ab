"""The prompts the methods ask by default, one pool per purpose.

The wording is ours. The embedded model (`mmalign.tiny`) is trained on these pools, so every recipe runs on it
unchanged; each pool can be replaced by a key of the recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mmalign.types import Clip, Media

#: Requests for a full description; self_consistency and apasi draw from them.
DETAIL: Final = (
    "Describe the picture in detail.",
    "Give a detailed description of the picture.",
    "Describe everything you see in the picture.",
    "Write a full description of what the picture shows.",
    "Please describe this picture in as much detail as you can.",
    "What does the picture show? Answer with a complete description.",
    "Tell me all the details of this picture.",
    "Explain what is in the picture and where each thing is.",
    "Write a long and careful description of the picture.",
    "List and describe all the things in the picture.",
)

#: Everyday requests for a description, differing in angle (STIC: the prompt stored with the pair).
PLAIN: Final = (
    "Describe this picture, with its details.",
    "Give a summary of what this picture shows.",
    "Explain what can be seen in this picture.",
    "Name the key elements of this picture.",
    "Describe the main things in this picture and how they are placed.",
    "Describe what this picture looks like as a whole.",
    "Say what this picture shows, as you understand it.",
    "What stands out in this picture? Describe it.",
)

#: The careful prompt that the better answer is written under (STIC).
STEP_BY_STEP: Final = (
    "Describe the picture step by step. First name the main things and what they do. Then say what kind of place it "
    "is. Then say where each thing is and which colours it has. Then give the mood and what causes it. Last, name "
    "small details that matter. Say only what you can see."
)

#: Prompts that ask for plausible things which are not there (STIC: the tempted answer).
IMAGINE: Final = (
    "Describe the picture and add things that you imagine could also be there.",
    "Describe the picture and include people who might be around.",
    "Describe the picture with useful items that somebody could have left there.",
    "Describe the picture and fill in what is missing but would fit.",
    "Describe the picture and what goes on just outside of it, as if it could be seen.",
    "Describe the picture and what may happen next, with all that would appear.",
    "Describe the weather and the animals in the picture. Say that there are some.",
    "Describe the picture and mention tools or vehicles that would be found in such a place.",
)

#: A short description (used to see what training on long ones does to an unseen request).
BRIEF: Final = ("Describe the picture in a few words.", "Give a short description of the picture.")

#: The model's own list of what it sees, without a long answer in the way.
LIST_OBJECTS: Final = "What things are in the picture?"

#: Existence question of one claim; `{thing}` carries its article.
IS_THERE: Final = "Is there {thing} in the picture?"

#: Judge of any other statement, asked with yes or no as the answer.
IS_TRUE: Final = "Is this true for the picture? {statement}"

#: Added to a yes/no question; without it real models often answer in a sentence.
YES_OR_NO: Final = "Answer yes or no."

#: Requests that a whole video be told, each from another angle (TEMPLE: one is drawn per pair).
TELL: Final = (
    "Describe the video in detail.",
    "What events does the video show?",
    "Tell one after the other what happens in the video.",
    "What are the main developments in the video?",
    "Give a timeline of the video.",
    "How does the video go on from start to finish?",
)

#: A model asks itself about a video (VideoSAVi); `{number}` is a word such as "three".
ASK_SPATIAL: Final = (
    "Write {number} questions about what is in the video, where it is and how it looks. Ask only what has to be seen. "
    "One question per line, no answers."
)
ASK_TEMPORAL: Final = (
    "Write {number} questions about what happens in the video, in which order, before and after what. Ask only what "
    "has to be seen. One question per line, no answers."
)

#: A model looks for the errors of an answer, and then mends it (VideoSAVi).
CRITIQUE: Final = (
    "Question: {question}\nAnswer: {answer}\nCompare the answer with the video. Name each error in a line of its own "
    "that starts with its kind (factual, temporal order, spatial relation, object hallucination, causal, omission). "
    "Without any error write only: No error."
)
REVISE: Final = (
    "Question: {question}\nAnswer: {answer}\nErrors: {critique}\nWrite the answer without these errors. Write only the "
    "answer."
)

#: Is an open answer as good as the reference? Asked without media, with yes or no as the answer (RRPO).
SAME_MEANING: Final = (
    "Question: {question}\nReference answer: {reference}\nGiven answer: {answer}\nDoes the given answer say the same "
    "as the reference answer?"
)

#: What differs between two answers, and the reference changed by just that (RRPO, two turns).
DIFFERENCES: Final = (
    "Question: {question}\nFirst answer: {reference}\nSecond answer: {answer}\nName the key things in which the second "
    "answer differs: objects, actions, attributes. Without any such thing write only: None."
)
REWRITE: Final = "Write the first answer again, changed so that it has these differences. Write only the answer."


#: All of the above that speak of a picture.
_OF_PICTURES: Final = frozenset((*DETAIL, *PLAIN, STEP_BY_STEP, *IMAGINE, *BRIEF, LIST_OBJECTS, IS_THERE, IS_TRUE))


def worded(prompt: str, media: Sequence[Media]) -> str:
    """The prompt in words for what it is about: one of these pools speaks of a video where one is shown.

    Any other prompt, which a user wrote, stays as it is.
    """
    return for_media(prompt, media) if prompt in _OF_PICTURES else prompt


def for_media(text: str, media: Sequence[Media]) -> str:
    """A text of the house's own that speaks of a picture: of a video where one is shown."""
    return text.replace("picture", "video") if any(isinstance(part, Clip) for part in media) else text
