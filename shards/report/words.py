"""Captions -> words, in any script, and counts that stay bounded however many different words there are."""

import unicodedata
from collections import Counter

_ENGLISH = "a an the and or of in on at to for from by with without is are was be it its this that as"
_SERBIAN = "i u o s sa na za od do iz po se je su ili kao bez и у о с са на за од до из по се је су или као без"
STOP_WORDS = frozenset(f"{_ENGLISH} {_SERBIAN}".split())
"""English and Serbian (both scripts) words that say nothing about an image."""
JOINERS = "'’-\u200c\u200d"
"""Stand inside words (crème-brûlée, l'oignon); the last two are Unicode's joiners, as in Persian and Hindi."""


class _WordCharacters(dict):
    """For str.translate: letters, marks and joiners stay, all else becomes a space; filled as characters turn up."""

    def __missing__(self, code: int) -> int:
        character = chr(code)
        # Marks (M*) by themselves are no letters to Python, but cutting at them would tear Devanagari and NFD apart.
        stays = character in JOINERS or unicodedata.category(character)[0] in "LM"
        self[code] = code if stays else ord(" ")
        return self[code]


_WORD_CHARACTERS = _WordCharacters()


def words_of(caption: str) -> list[str]:
    """Lower-case words in NFC, in order, without numbers, STOP_WORDS and single Latin, Greek or Cyrillic letters.

    A text without spaces (Chinese, Japanese) is one word from one punctuation mark to the next.
    """
    text = unicodedata.normalize("NFC", caption).lower().translate(_WORD_CHARACTERS)
    stripped = (word.strip(JOINERS) for word in text.split())
    return [word for word in stripped if word and word not in STOP_WORDS and (len(word) > 1 or word >= "\u0530")]


class BoundedCounter:
    """Counts of the most frequent texts among any number of them, holding at most `limit` at a time.

    When it is full the rarer half is forgotten: a count is then a lower bound, off by the occurrences before (and
    `forgot` says so). Exact while there are at most `limit` different texts.
    """

    def __init__(self, limit: int = 200_000) -> None:
        self.limit, self.forgot = limit, False
        self._counts: Counter[str] = Counter()

    def add(self, text: str) -> None:
        self._counts[text] += 1
        if len(self._counts) > self.limit:
            self._counts = Counter(dict(self.top(self.limit // 2)))
            self.forgot = True

    def top(self, count: int) -> list[tuple[str, int]]:
        """The most frequent first, equals in the order of their code points."""
        return sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))[:count]
