"""Which known instruction another wording stands for: "Close the drawer." is "close the drawer".

The rule, in this order: the same words, whatever the case, punctuation, spaces, articles and words of politeness; all words of one in the other;
three quarters of the words of both in common. Words that differ by a slip of the pen count as the same. Of several the one with most in common.
One that says the opposite ("open" for "close", "unlock" for "lock", "do not close" for "close") is never near.
"""

import re
import unicodedata
from collections.abc import Iterable
from difflib import SequenceMatcher

FILLERS = {"a", "an", "the", "please", "kindly", "now", "can", "could", "would", "you"}
OPPOSITES = [  # either side with all its forms
    ({"open", "opens", "opened", "opening"}, {"close", "closes", "closed", "closing", "shut", "shuts", "shutting"}),
    ({"on", "onto"}, {"off"}),
    ({"left", "leftmost"}, {"right", "rightmost"}),
    ({"up", "upward", "upwards"}, {"down", "downward", "downwards"}),
    ({"top", "upper"}, {"bottom", "lower"}),
    ({"raise", "lift"}, {"lower"}),
    ({"front", "forward", "forwards"}, {"back", "backward", "backwards", "rear"}),
    ({"in", "into", "inside"}, {"out", "outside"}),
    ({"push", "pushes", "pushing"}, {"pull", "pulls", "pulling"}),
    ({"insert", "inserts", "inserting"}, {"remove", "removes", "removing", "extract"}),
    ({"increase"}, {"decrease"}),
    ({"clockwise"}, {"counterclockwise", "anticlockwise"}),
    ({"first"}, {"last"}),
]
NEGATIONS = {"not", "don", "dont", "never", "without", "stop", "avoid"}  # "don't" is two words
REVERSING = ("un", "dis", "de")  # "lock" and "unlock" differ by no slip of the pen
COMMON = 0.75  # of the different words of both, from which two instructions are near
SPELLING = 0.8  # difflib's ratio, from which two words are the same one


def words(instruction: str) -> tuple[str, ...]:
    """The words that say something, in lower case."""
    spoken = re.findall(r"\w+", unicodedata.normalize("NFKC", instruction).casefold())
    return tuple(word for word in spoken if word not in FILLERS)


def nearest(instruction: str, known: Iterable[str]) -> str | None:
    """The known instruction that this wording stands for; None where none is near."""
    known, mine = list(known), words(instruction)
    if instruction in known:
        return instruction
    if not mine:
        return None
    for one in known:
        if words(one) == mine:
            return one
    near = {one: shared for one in known if (shared := _shared(set(mine), set(words(one)))) is not None}
    return max(near, key=near.__getitem__) if near else None


def _shared(mine: set[str], theirs: set[str]) -> float | None:
    """The part of the different words of both that they have in common; None where that makes them no neighbours."""
    if _opposite(mine, theirs) or _opposite(theirs, mine):
        return None
    common = sum(any(_same(word, other) for other in theirs) for word in mine)
    part = common / max(len(mine) + len(theirs) - common, 1)
    return part if common and (part >= COMMON or common >= min(len(mine), len(theirs))) else None


def _opposite(mine: set[str], theirs: set[str]) -> bool:
    """Whether one of what only `mine` says turns what only `theirs` says, or all of it, around."""
    own, other = mine - theirs, theirs - mine
    if own & NEGATIONS or any(reversing + word in own for word in theirs for reversing in REVERSING):
        return True
    return any(own & one and other & another for one, another in OPPOSITES)


def _same(word: str, other: str) -> bool:
    """Short words and numbers have no slips: "on" is not "in", and "10" not "11"."""
    if word == other:
        return True
    short, long = sorted((len(word), len(other)))
    if short <= 3 or 2 * short < SPELLING * (short + long) or (word + other).isnumeric():
        return False
    return SequenceMatcher(None, word, other).ratio() >= SPELLING
