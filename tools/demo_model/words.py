"""Word lists, and which of them are kept for the held-out sets."""

import json
import os
import zlib

_PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "words.json")
with open(_PATH, encoding="utf-8") as _file:
    _LISTS = json.load(_file)

WORDS = _LISTS["words"]  # language -> words
FIRST_NAMES = _LISTS["first_names"]
LAST_NAMES = _LISTS["last_names"]
LANGUAGES = sorted(WORDS)


def held_out(key):
    """One key in ten is for held-out sets alone, whatever the seed."""
    return zlib.crc32(str(key).encode()) % 10 == 0


class Source:
    """Draws of one side: training sees what is not held out; held-out sets see only what is."""

    def __init__(self, generator, testing, stage=1):
        self.generator = generator
        self.testing = testing
        self.stage = stage  # of training

    def new(self, draw, key=lambda value: value):
        """What `draw()` gives, of this side."""
        while True:
            value = draw()
            if held_out(key(value)) == self.testing:
                return value

    def pick(self, values):
        return self.generator.choice(values)

    def pick_new(self, values):
        return self.new(lambda: self.pick(values))

    def number(self, low, high):
        return self.generator.randint(low, high)

    def chance(self, probability):
        return self.generator.random() < probability

    def sample(self, values, count):
        return self.generator.sample(values, count)


_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwz", "aeiou"
ENGLISH = [word for word in WORDS["English"] if word.islower() and 3 <= len(word) <= 8]


def made_up(source, low=2, high=3):
    """A word that no list has, of `low` to `high` syllables."""
    word = ""
    for _ in range(source.number(low, high)):
        word += source.pick(_CONSONANTS) + source.pick(_VOWELS)
    return word + (source.pick(_CONSONANTS) if source.chance(0.4) else "")


def spliced(source):
    """The beginning of one listed word and the end of another. In stage 2 they may be pieces of words
    that are held out: else tokens that only these have would never be read as parts of a word."""
    pools = [WORDS[language] for language in LANGUAGES] + [FIRST_NAMES, LAST_NAMES]
    pick = source.pick if source.stage == 2 else source.pick_new
    first, last = (pick(source.pick(pools)).lower() for _ in range(2))
    if source.stage == 2 and source.chance(0.5):  # all of the first
        return first + last[-source.number(1, 3) :]
    return (first[: source.number(1, len(first))] + last[source.number(0, len(last)) :])[:10]


def word(source):
    """A lower-case word: English, made up, or put together from pieces of words and names."""
    kind = source.generator.random()
    if kind < 0.5:
        return source.pick_new(ENGLISH)
    if kind < 0.65:
        return source.new(lambda: made_up(source))
    return source.new(lambda: spliced(source))
