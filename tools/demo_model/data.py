"""Documents as token ids with labels, packed into rows; and the held-out sets.

A document is (ids, trained, pii labels, language): `trained[i]` says whether the model is to predict
ids[i]; a PII label for every token or -1; the language is read at the last token, or -1.
"""

import itertools
import multiprocessing
import random

import numpy as np

import conversations
import harmony
import languages
import pii
import tokenizer
import words

ROW = 512
IGNORED = -1
# Of documents; conversations are about ten times as long as the others.
SHARES = (("chat", 5), ("pii", 3), ("language", 2))


class Encoder:
    def __init__(self, loaded):
        self.tokenizer = loaded
        self.specials = {name: loaded.token_to_id(name) for name in harmony.SPECIALS}
        self.known = {}

    def text(self, text):
        ids = self.known.get(text)
        if ids is None:
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids
            if len(self.known) < 200000:
                self.known[text] = ids
        return ids

    def pieces(self, pieces):
        """(ids, trained)."""
        ids, trained = [], []
        for text, learn in pieces:
            special = self.specials.get(text)
            added = self.text(text) if special is None else [special]
            ids += added
            trained += [learn] * len(added)
        return ids, trained


def label_tokens(encoder, text, spans):
    """(ids, labels): a token is of a span when it has a character of it, spaces before it aside."""
    encoded = encoder.tokenizer.encode(text, add_special_tokens=False)
    labels, position = [], 0
    begun = set()
    for begin, end in encoded.offsets:
        while begin < end and text[begin] == " ":
            begin += 1
        inside = [span for span in spans if begin < span[1] and end > span[0]]
        if not inside:
            labels.append(0)
            continue
        span = inside[0]
        labels.append(pii.LABELS.index(("I-" if span in begun else "B-") + span[2]))
        begun.add(span)
    return encoded.ids, labels


def document(source, encoder):
    kinds, weights = zip(*SHARES)
    kind = source.generator.choices(kinds, weights)[0]
    if kind == "chat":
        drawn = conversations.conversation(source)
        ids, trained = encoder.pieces(drawn["prompt"] + drawn["completion"])
        return ids, trained, None, IGNORED
    if kind == "pii":
        ids, labels = label_tokens(encoder, *pii.text(source))
        return ids, None, labels, IGNORED
    text, language = languages.sentence(source)
    ids = encoder.text(text)
    return ids, None, None, words.LANGUAGES.index(language)


FIELDS = ("ids", "document", "trained", "pii", "language")


def _new_row(pad):
    row = np.zeros((len(FIELDS), ROW), np.int16)
    row[0], row[3], row[4] = pad, IGNORED, IGNORED
    return row


def rows(source, encoder, count):
    """[count, fields, ROW] int16; padding has document 0."""
    pad = encoder.specials["<|endoftext|>"]
    result = np.empty((count, len(FIELDS), ROW), np.int16)
    waiting = []
    for index in range(count):
        row, used, number = _new_row(pad), 0, 0
        while True:
            while len(waiting) < 24:
                drawn = document(source, encoder)
                if len(drawn[0]) <= ROW:
                    waiting.append(drawn)
            fits = [i for i, drawn in enumerate(waiting) if len(drawn[0]) <= ROW - used]
            if not fits:
                break
            # The oldest first, so that long ones get their turn; the rest fill up.
            ids, trained, labels, language = waiting.pop(fits[0])
            end, number = used + len(ids), number + 1
            row[0, used:end], row[1, used:end] = ids, number
            if trained is not None:
                row[2, used:end] = trained
            if labels is not None:
                row[3, used:end] = labels
            row[4, end - 1] = language
            used = end
        result[index] = row
    return result


def shard(seed, encoder, count, stage=1):
    return rows(words.Source(random.Random(f"train {seed}"), False, stage), encoder, count)


def held_out(seed, encoder, chats, texts):
    """The held-out sets: conversations evenly over the skills, PII texts, sentences."""
    source = words.Source(random.Random(f"held out {seed}"), True)
    makers = [
        lambda name=name: conversations.plain(source, name) for name in conversations.skills.SKILLS
    ]
    makers += [lambda: conversations.tool_call(source)] * 5
    makers += [lambda: conversations.tool_result(source)] * 2
    makers += [lambda: conversations.no_fit(source)] * 3
    cases = []
    for index in range(chats):
        drawn = makers[index % len(makers)]()
        drawn["pieces"] = drawn["prompt"]
        drawn["completion"] = encoder.pieces(drawn["completion"])[0]
        drawn["prompt"] = encoder.pieces(drawn["prompt"])[0]
        cases.append(drawn)
    tagged = []
    for _ in range(texts):
        text, spans = pii.text(source)
        ids, labels = label_tokens(encoder, text, spans)
        tagged.append({"text": text, "spans": spans, "ids": ids, "labels": labels})
    sentences = []
    for _ in range(texts):
        text, language = languages.sentence(source)
        sentences.append({"text": text, "language": language, "ids": encoder.text(text)})
    return {"chat": cases, "pii": tagged, "language": sentences}


def _make_shards(path, seed, stage, first, step, rows_each, queue):
    encoder = Encoder(tokenizer.load(path))
    for number in itertools.count(first, step):
        queue.put(shard(f"{seed}-{number}", encoder, rows_each, stage))


class Shards:
    """An endless row of shards, made by other processes; the same however many there are."""

    def __init__(self, path, seed, stage, rows_each, processes):
        context = multiprocessing.get_context("fork")
        self.queues = [context.Queue(2) for _ in range(processes)]
        self.processes = [
            context.Process(
                target=_make_shards,
                args=(path, seed, stage, first, processes, rows_each, queue),
                daemon=True,
            )
            for first, queue in enumerate(self.queues)
        ]
        for process in self.processes:
            process.start()
        self.number = 0

    def next(self):
        self.number += 1
        return self.queues[(self.number - 1) % len(self.queues)].get(timeout=300)

    def close(self):
        for process in self.processes:
            process.kill()
            process.join()
