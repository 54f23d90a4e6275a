#!/usr/bin/env python3
"""The sizing table of docs/deploy.md, from `conclave plan`.

Usage: sizing.py CONCLAVE     from the root of the repository

plan reads the headers of weight files, so that is all that is made here: files of the released
checkpoints' size, with nothing in them.
"""

import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile

MODELS = {"20b": "bench/configs/gpt_oss_20b", "120b": "bench/configs/gpt_oss_120b"}
GPUS = (1, 2, 4, 8, 16)
# What CUDA shows of a card of 80 and of 141 GB.
CARDS = (79 << 30, 139 << 30)
SIZES = {"BF16": 2, "U8": 1}


def share_aside():
    """Of a card, what the coordinator sets aside. Of cards like these it is more than its minimum."""
    with open("coordinator/memory_fit.cc", encoding="utf-8") as file:
        (share,) = re.findall(r"kDeviceReserveShare = ([0-9.]+);", file.read())
    return float(share)


def tensors(config):
    """name -> (type, shape) of the released layout."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config["head_dim"]
    query, key = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    experts = config["num_local_experts"]
    vocabulary = [config["vocab_size"], hidden]
    found = {"lm_head.weight": vocabulary, "model.embed_tokens.weight": vocabulary}
    found["model.norm.weight"] = [hidden]
    for layer in range(config["num_hidden_layers"]):
        shapes = {"input_layernorm.weight": [hidden], "post_attention_layernorm.weight": [hidden]}
        for name, rows in (("q", query), ("k", key), ("v", key)):
            shapes[f"self_attn.{name}_proj.weight"] = [rows, hidden]
            shapes[f"self_attn.{name}_proj.bias"] = [rows]
        shapes["self_attn.o_proj.weight"], shapes["self_attn.o_proj.bias"] = [hidden, query], [hidden]
        shapes["self_attn.sinks"] = [config["num_attention_heads"]]
        shapes["mlp.router.weight"], shapes["mlp.router.bias"] = [experts, hidden], [experts]
        for name, rows, columns in (("gate_up", 2 * inner, hidden), ("down", hidden, inner)):
            prefix = f"mlp.experts.{name}_proj"
            shapes[f"{prefix}_bias"] = [experts, rows]
            shapes[f"{prefix}_blocks"] = [experts, rows, columns // 32, 16]
            shapes[f"{prefix}_scales"] = [experts, rows, columns // 32]
        found.update({f"model.layers.{layer}.{name}": shape for name, shape in shapes.items()})
    return {n: ("U8" if n.endswith(("_blocks", "_scales")) else "BF16", s) for n, s in found.items()}


def make_checkpoint(source, folder):
    shutil.copy(os.path.join(source, "config.json"), folder)
    with open(os.path.join(source, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    header, end = {}, 0
    for name, (kind, shape) in tensors(config).items():
        begin, end = end, end + math.prod(shape) * SIZES[kind]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def plan(conclave, folder, gpus):
    command = [conclave, "plan", "--model", folder, "--workers", str(gpus), "--device", "cuda"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["ranks"]


def tokens(ranks, card):
    """Of KV cache, in all ranks together, in millions; None where weights leave no room."""
    rank = max(ranks, key=lambda r: r["bytes"]["total"])
    left = card * (1 - share_aside()) - rank["bytes"]["total"]
    if left <= 0:
        return None
    return len(ranks) * left / rank["kv_bytes_per_token_full"] / 1e6


def table(conclave):
    yield "| model | GPUs (`--dp`) | experts of a layer on each | weights on each | KV cache on 80 GB | on 141 GB |"
    yield "|---|---|---|---|---|---|"
    for model, source in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            make_checkpoint(source, folder)
            for gpus in GPUS:
                ranks = plan(conclave, folder, gpus)
                weights = max(rank["bytes"]["total"] for rank in ranks) / (1 << 30)
                counts = sorted({len(rank["experts"][0]) for rank in ranks})
                caches = [tokens(ranks, card) for card in CARDS]
                cells = [f"{cache:.1f} M tokens" if cache else "does not fit" for cache in caches]
                experts = " or ".join(map(str, counts))
                yield f"| {model} | {gpus} | {experts} | {weights:.1f} GiB | {cells[0]} | {cells[1]} |"


if __name__ == "__main__":
    print("\n".join(table(sys.argv[1])))
