#!/usr/bin/env python3
"""The held-out sets through Transformers, from the shipped files; writes the figures and the experts' load.

evaluate_transformers.py --model DIR --output FILE [--chats 1450] [--texts 1000] [--seed 2]
"""

import argparse
import json
import os
import time

import torch
import transformers

import checkpoint
import data
import pii
import score
import tokenizer as tokenizers
import words


class Load:
    """Counts which experts the routers choose, [layers, experts]."""

    def __init__(self, model):
        config = model.config
        self.counts = torch.zeros(config.num_hidden_layers, config.num_local_experts)
        self.mask = None  # rows that count
        for index, layer in enumerate(model.model.layers):
            hook = lambda _m, _i, output, index=index: self.count(index, output[2])
            layer.mlp.router.register_forward_hook(hook)

    def count(self, layer, chosen):
        if self.mask is not None:
            chosen = chosen[self.mask]
            experts = self.counts.shape[1]
            self.counts[layer] += torch.bincount(chosen.flatten(), minlength=experts).cpu().float()


def batches(cases, size):
    order = sorted(range(len(cases)), key=lambda index: len(cases[index]))
    for begin in range(0, len(order), size):
        yield order[begin : begin + size]


def padded(rows, pad, left):
    longest = max(map(len, rows))
    fill = [[pad] * (longest - len(row)) for row in rows]
    ids = [more + row if left else row + more for row, more in zip(rows, fill)]
    mask = [
        [0] * len(f) + [1] * len(r) if left else [1] * len(r) + [0] * len(f)
        for r, f in zip(rows, fill)
    ]
    return torch.tensor(ids), torch.tensor(mask)


@torch.no_grad()
def complete(model, prompts, limit=160, size=768):
    """Greedy completions, the end token included."""
    ends = model.generation_config.eos_token_id
    results = [None] * len(prompts)
    for chosen in batches(prompts, size):
        ids, mask = padded([prompts[i] for i in chosen], model.config.pad_token_id, left=True)
        out = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=False,
            max_new_tokens=limit,
        )[:, ids.shape[1] :].tolist()
        for index, row in zip(chosen, out):
            stop = [place for place, token in enumerate(row) if token in ends]
            results[index] = row[: stop[0] + 1] if stop else row
    return results


@torch.no_grad()
def hidden_states(model, rows, load, size=128):
    """Final-normed hidden states of each row."""
    results = [None] * len(rows)
    for chosen in batches(rows, size):
        ids, mask = padded([rows[i] for i in chosen], model.config.pad_token_id, left=False)
        load.mask = mask.flatten().bool().to(model.device)
        out = model.model(
            ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False
        )
        load.mask = None
        for index, state in zip(chosen, out.last_hidden_state):
            results[index] = state[: len(rows[index])]
    return results


def evaluate(folder, sets, encoder, device):
    model = checkpoint.load(folder, device)
    load_counter = Load(model)
    completions = complete(model, [case["prompt"] for case in sets["chat"]])
    chat, wrong = [], []
    for case, ids in zip(sets["chat"], completions):
        right, formed, said = score.judge(encoder.tokenizer, case, ids)
        chat.append((case["skill"], right, formed))
        if not right:
            question = [text for text, _ in case["pieces"] if text]
            wrong.append((case["skill"], question[-4], case.get("answer", case.get("call")), said))
    heads = checkpoint.load_heads(folder, device)
    states = hidden_states(model, [case["ids"] for case in sets["pii"]], load_counter)
    pairs = []
    for case, state in zip(sets["pii"], states):
        logits = state @ heads["pii"].T + heads["pii_bias"]
        labels = [pii.LABELS[index] for index in logits.argmax(-1).tolist()]
        offsets = encoder.tokenizer.encode(case["text"]).offsets
        pairs.append((set(case["spans"]), score.spans_of(labels, offsets, case["text"])))
        if pairs[-1][0] != pairs[-1][1]:
            wrong.append(("pii", case["text"], sorted(pairs[-1][0]), sorted(pairs[-1][1])))
    states = hidden_states(model, [case["ids"] for case in sets["language"]], load_counter)
    sentences = []
    for case, state in zip(sets["language"], states):
        best = (state[-1] @ heads["language"].T).argmax().item()
        sentences.append(words.LANGUAGES[best] == case["language"])
        if not sentences[-1]:
            wrong.append(("language", case["text"], case["language"], words.LANGUAGES[best]))
    rows = [case["prompt"] + ids for case, ids in zip(sets["chat"], completions)]
    hidden_states(model, rows, load_counter)
    result = score.summary(chat, pairs, sentences)
    share = load_counter.counts / load_counter.counts.sum(-1, keepdim=True)
    result["expert_load_percent"] = [
        [round(100 * value, 2) for value in row] for row in share.tolist()
    ]
    return result, wrong


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--chats", type=int, default=1450)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--wrong", type=int, default=60, help="mistakes to print")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    start = time.monotonic()
    encoder = data.Encoder(tokenizers.load(os.path.join(args.model, "tokenizer.json")))
    sets = data.held_out(args.seed, encoder, args.chats, args.texts)
    result, wrong = evaluate(args.model, sets, encoder, args.device)
    result["seed"] = args.seed
    device = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    result["with"] = (
        f"Transformers {transformers.__version__}, PyTorch {torch.__version__}, float32, {device}"
    )
    with open(args.output, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
    for line in wrong[: args.wrong]:
        print(line)
    print(json.dumps({key: value for key, value in result.items() if "load" not in key}))
    load_values = [value for row in result["expert_load_percent"] for value in row]
    print(
        f"expert load: {min(load_values)} to {max(load_values)} %, {time.monotonic() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
