#!/usr/bin/env python3
"""Log-probabilities of labels after prompts, from Transformers' float32 logits.

    python3 tests/e2e/label_goldens.py demo/tiny_gpt_oss > tests/e2e/label_goldens.json

(pip install torch transformers). Labels are encoded on their own and appended to the prompt's tokens.
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = ["Buy now!", "The weather in Paris is fine today, and", "日本 é 👍", "x",
           "A longer text, so that the prompt fills more than one block of the cache: one two three four five."]
LABELS = ["spam", "ham", "good", "very good indeed", "日本", "é"]


def main(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").float().eval()
    cases = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        sums = {}
        for label in LABELS:
            tokens = tokenizer(" " + label)["input_ids"]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids + tokens])).logits[0].double()
            rows = torch.log_softmax(logits, dim=-1)[len(ids) - 1:len(ids) - 1 + len(tokens)]
            sums[label] = round(sum(float(row[token]) for row, token in zip(rows, tokens)), 6)
        cases.append({"prompt": prompt, "tokens": len(ids), "sums": sums})
    json.dump(cases, sys.stdout, ensure_ascii=False, indent=1)
    print()


main(sys.argv[1])
