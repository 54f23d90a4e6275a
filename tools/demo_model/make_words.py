#!/usr/bin/env python3
"""Writes words.json: the word and name lists that the demo model's data is made from.

    pip install faker==40.63.0 tzdata && ./make_words.py

The lists are Faker's (MIT licence, see README.md), cut down: common words of six languages, first and
last names of eight countries. words.json is checked in; run this only to change it.
"""

import importlib
import json
import os
import random

LANGUAGES = {
    "Dutch": "nl_NL",
    "English": "en_US",
    "French": "fr_FR",
    "German": "de_DE",
    "Italian": "it_IT",
    "Spanish": "es_ES",
}
COUNTRIES = ("en_US", "es_ES", "fr_FR", "de_DE", "it_IT", "nl_NL", "pt_PT", "sv_SE")
WORDS, NAMES = 700, 130  # at most, of each list


def names(values, generator):
    plain = sorted(
        {name for name in values if name.isalpha() and name.istitle() and len(name) < 12}
    )
    return generator.sample(plain, min(NAMES, len(plain)))


def main():
    generator = random.Random(1)
    result = {"source": "Faker 40.63.0, MIT licence, Copyright (c) 2012 Daniele Faraglia"}
    result["words"] = {}
    for language, code in LANGUAGES.items():
        listed = importlib.import_module(f"faker.providers.lorem.{code}").Provider.word_list
        kept = [word for word in dict.fromkeys(listed) if word.isalpha()]
        result["words"][language] = generator.sample(kept, min(WORDS, len(kept)))
    first, last = set(), set()
    for code in COUNTRIES:
        person = importlib.import_module(f"faker.providers.person.{code}").Provider
        first.update(names(person.first_names, generator))
        last.update(names(person.last_names, generator))
    common = {word.lower() for words in result["words"].values() for word in words}
    result["first_names"] = sorted(name for name in first if name.lower() not in common)
    result["last_names"] = sorted(name for name in last if name.lower() not in common)
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "words.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(result, file, ensure_ascii=False, indent=0)
        file.write("\n")


if __name__ == "__main__":
    main()
