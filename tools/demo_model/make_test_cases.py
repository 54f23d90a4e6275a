#!/usr/bin/env python3
"""Writes the held-out cases of tests/e2e/small_model_test.cc: one JSON object a line.

    make_test_cases.py --model demo/small_gpt_oss --output tests/goldens/small_gpt_oss.jsonl

A case is a conversation (conclave.v1.Conversation, in protobuf's JSON) with how many tokens training has
for it and the right answer or call; a text with its PII spans, in bytes; or a sentence with its language.
They come from a seed of their own and are not chosen by what the model can.
"""

import argparse
import json
import os

from google.protobuf import json_format

import data
import service
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
    lines = []
    for case in sets["chat"]:
        conversation = service.to_conversation(case["conversation"])
        wanted = "call" if "call" in case else "answer"
        lines.append(
            {
                "skill": case["skill"],
                "conversation": json_format.MessageToDict(
                    conversation, preserving_proto_field_name=True
                ),
                "prompt_tokens": len(case["prompt"]),
                wanted: case[wanted],
            }
        )
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
