"""Subject and verb agree: sentences of a small grammar, with nouns of the other number in between.

    the old KEY near the cabinets behind my doors HELPS the king .           two attractors

Subject, up to five nouns, each after a preposition and, as a coin falls, of the other number than the subject (an attractor) or of
its own, the verb, an object or nothing. The number of the verb follows the subject alone: articles and adjectives fit both numbers,
and what lies between tells nothing. After Linzen et al. 2016 (arXiv 1611.01368), whose test the Universal Transformer takes in its
section 3.2; theirs are sentences of Wikipedia, these are drawn.
"""

import numpy as np

from paperlab.data.synthetic import addressed
from paperlab.errors import ConfigError

PADDING, STOP = 0, 1
NOUNS = (
    "key",
    "cabinet",
    "door",
    "guard",
    "boat",
    "river",
    "lamp",
    "friend",
    "teacher",
    "author",
    "book",
    "window",
    "garden",
    "king",
    "horse",
    "cat",
)
VERBS = ("see", "know", "help", "find", "want", "follow", "hear", "praise")
ARTICLES = ("the", "my")
ADJECTIVES = ("old", "small", "red", "quiet", "strange", "tall")
PREPOSITIONS = ("near", "to", "behind", "with", "above", "beside")
WORDS = (
    "_",
    ".",
    *NOUNS,
    *(f"{noun}s" for noun in NOUNS),
    *(f"{verb}s" for verb in VERBS),
    *VERBS,
    *ARTICLES,
    *ADJECTIVES,
    *PREPOSITIONS,
)
LONGEST = 34  # symbols of the longest sentence
MOST = 5  # nouns between subject and verb
ANY = -1
_AT = {word: i for i, word in enumerate(WORDS)}
_DRAWS = 96


def examples(
    indices_B: np.ndarray, *, seed: int = 0, nouns: int = MOST, attractors: int = ANY, sequence_length: int = LONGEST
) -> dict[str, np.ndarray]:
    """The examples `indices_B` as a batch of the language-modelling task, a sentence a row, the first predicted from symbol 0.

    Args:
      indices_B: example numbers.
      seed: one seed is one endless set of examples.
      nouns: most between subject and verb; how many is drawn evenly.
      attractors: how many of them are of the other number; ANY: as coins fall.
      sequence_length: T, at least LONGEST.

    Returns:
      tokens, targets, weights, segment_ids, positions, bytes [B, T], and of each row `verb`, the place at which it is predicted,
      and `wrong`, its other form, int32 [B].

    Raises:
      ConfigError: attractors or a length that cannot be.
    """
    check(nouns, attractors, sequence_length)
    draws = addressed.uniform(addressed.streams(indices_B, seed), _DRAWS, 0)
    rows = [_sentence(iter(row), nouns, attractors) for row in draws]
    targets = np.zeros((len(rows), sequence_length), np.int32)
    for b, (words, _) in enumerate(rows):
        targets[b, : len(words)] = words
    tokens = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    verb = np.array([at for _, at in rows], np.int32)
    right = targets[np.arange(len(rows)), verb]
    first = _AT[VERBS[0] + "s"]
    other = np.where(right < first + len(VERBS), right + len(VERBS), right - len(VERBS))
    return {**addressed.packed(tokens, targets, targets != PADDING), "verb": verb, "wrong": other.astype(np.int32)}


def check(nouns: int, attractors: int, sequence_length: int) -> None:
    """Raises ConfigError for options of `examples` out of range."""
    if not 0 <= nouns <= MOST:
        raise ConfigError(f"config.task.nouns={nouns}: must be from 0 to {MOST}")
    if not ANY <= attractors <= nouns:
        raise ConfigError(f"{attractors} attractors among at most config.task.nouns={nouns}: give no more than nouns")
    if sequence_length < LONGEST:
        raise ConfigError(f"config.data.sequence_length={sequence_length}: sentences need {LONGEST}")


def spelled(symbols: np.ndarray) -> list[str]:
    """The words of a row, up to its full stop."""
    return [WORDS[i] for i in symbols if i != PADDING]


def _sentence(draw, nouns: int, attractors: int) -> tuple[list[int], int]:
    """Symbols, and where the verb stands."""

    def one_of(choices: tuple[str, ...]) -> str:
        return choices[int(next(draw) * len(choices))]

    def noun(plural: bool) -> list[str]:
        adjective = [one_of(ADJECTIVES)] if next(draw) < 0.3 else []
        return [one_of(ARTICLES), *adjective, one_of(NOUNS) + "s" * plural]

    plural = bool(next(draw) < 0.5)
    least = max(attractors, 0)
    between = least + int(next(draw) * (nouns - least + 1))
    coins = np.array([next(draw) for _ in range(between)])
    others = coins < 0.5 if attractors == ANY else np.argsort(np.argsort(coins)) < attractors
    words = noun(plural)
    for attracts in others:
        words += [one_of(PREPOSITIONS), *noun(plural != bool(attracts))]
    at = len(words)
    words.append(one_of(VERBS) + "s" * (not plural))
    if next(draw) < 0.5:
        words += noun(bool(next(draw) < 0.5))
    return [_AT[word] for word in [*words, "."]], at
