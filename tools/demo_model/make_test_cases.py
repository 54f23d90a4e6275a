#!/usr/bin/env python3
"""Writes the held-out cases of tests/e2e/small_model_test.cc: one JSON object a line.

    make_test_cases.py --model demo/small_gpt_oss --output tests/goldens/small_gpt_oss.jsonl

A case is a prompt with the right completion, as token ids; a text with its PII spans, in bytes; or a
sentence with its language. They come from a seed of their own and are not chosen by what the model can.
"""

import argparse
import json
import os

import data
import tokenizer as tokenizers


def in_bytes(text, position):
    return len(text[:position].encode())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--chats", type=int, default=112)
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    encoder = data.Encoder(tokenizers.load(os.path.join(args.model, "tokenizer.json")))
    sets = data.held_out(args.seed, encoder, args.chats, args.texts)
    lines = [
        {"skill": case["skill"], "prompt": case["prompt"], "completion": case["completion"]}
        for case in sets["chat"]
    ]
    for case in sets["pii"]:
        text = case["text"]
        spans = [
            {"label": kind, "begin": in_bytes(text, begin), "end": in_bytes(text, end)}
            for begin, end, kind in case["spans"]
        ]
        lines.append({"text": text, "spans": spans})
    lines += [{"text": case["text"], "language": case["language"]} for case in sets["language"]]
    with open(args.output, "w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
