#!/usr/bin/env python3
"""What Transformers' token-classification pipeline makes of texts, as JSON lines.

    python3 coordinator/token_span_cases.py demo/tiny_gpt_oss > token_span_cases.jsonl

(pip install torch transformers). A line has the text, the head's logits of each token (after the checkpoint in
float32), and for every aggregation strategy the entities as [label, score, first character, end].
"""

import json
import random
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GptOssForTokenClassification, pipeline

WORDS = """Anna Smith-Jones lives in New York and works for Müller & Söhne GmbH since 1999 . , ! the of a 東京 日本語 你好世界 서울 Москва
naïve café e\u0301t\u00e9 a\u0308\u0323b 👍 👩‍👩‍👧 🇫🇷 🏽 don't we'll x² ½ (UK) http://a.b/c שלום مرحبا नमस्ते ไทย \u200b \ufeff ﬁ Ǆ""".split()
SPACES = [" "] * 8 + ["  ", "", "\n", "\t", "\u00a0", " \n "]


def texts(count):
    r = random.Random(7)
    for n in range(count):
        text = r.choice(["", "", " ", "\n"])
        for _ in range(r.randint(1, 9)):
            text += r.choice(WORDS) + r.choice(SPACES)
        yield text if n % 3 else text.strip() or "x"


def main(folder):
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder + "/head_token")
    backbone = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._attn_implementation = "eager"
    model = GptOssForTokenClassification(config).float()
    model.model = backbone.model
    model.load_state_dict(load_file(folder + "/head_token/head.safetensors"), strict=False)
    model.eval()
    pipe = pipeline("token-classification", model=model, tokenizer=tokenizer, device="cpu")
    for text in texts(120):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        if ids.shape[1] > 250:
            continue
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0]
        case = {"text": text, "ids": ids[0].tolist(), "logits": [[round(float(x), 6) for x in row] for row in logits]}
        for strategy in ["none", "simple", "first", "average", "max"]:
            case[strategy] = [[e.get("entity_group", e.get("entity")), round(float(e["score"]), 6), e["start"], e["end"]]
                              for e in pipe(text, aggregation_strategy=strategy)]
        print(json.dumps(case, ensure_ascii=False))


main(sys.argv[1])
