"""The demo model's tokenizer: byte-level BPE with Harmony's special tokens, in tokenizer.json form.

It splits text as o200k does, but its merges never cross from letters to other characters, never join
digits (sums are learnt digit by digit) and never join capitals (so that upper case is letter by letter).
"""

import json

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

import conversations
import harmony
import languages
import pii

SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What merges are learnt within.
FINE = r" ?\p{Lu}?\p{Ll}+| ?\p{Lu}|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+|."


def _split(pattern):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def texts(source, count):
    for _ in range(count):
        drawn = conversations.conversation(source)
        for piece, _ in drawn["prompt"] + drawn["completion"]:
            if piece not in harmony.SPECIALS:
                yield piece
        yield pii.text(source)[0]
        yield languages.sentence(source)[0]


def train(source, vocabulary, path, count=20000):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _split(FINE)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(harmony.SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(source, count), trainer)
    tokenizer.pre_tokenizer = _split(SPLIT)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(harmony.SPECIALS))
    written = json.loads(tokenizer.to_str())
    with open(path, "w", encoding="utf-8") as file:
        json.dump(written, file, ensure_ascii=False, indent=1)
        file.write("\n")


def load(path):
    return tokenizers.Tokenizer.from_file(path)
