#!/usr/bin/env python3
"""Trains the demo model: one run for the language model and both heads. See README.md.

    train.py --output DIR [--steps N | --seconds S] [--seed N] [--device cuda]     stage 1
    train.py --start DIR --output DIR ...                                          stage 2

Stage 2 goes on from stage 1's files, with more of the tasks that copy words.
With --steps the run is a function of the seed (on one card and one set of versions); --seconds
measures the speed and chooses the steps to fit.
"""

import argparse
import json
import os
import random
import shutil
import time

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import torch._inductor.config
import torch.nn.functional as F
import transformers

import checkpoint
import data
import fast_model
import pii
import tokenizer
import words

BATCH = 64  # rows
SHARD = 32 * BATCH  # rows of a shard of data
WARM_UP = 200
WEIGHTS = {"pii": 0.3, "language": 0.15, "balance": 0.02}
ROUNDING_BEGINS, ROUNDING_FULL = 0.3, 0.4  # of the run

# Else the compiler times several kernels for a sum and takes the fastest: the order of the sum, and so
# the trained model, would differ from run to run.
torch._inductor.config.deterministic = True
torch.use_deterministic_algorithms(True)


def new_model(folder, seed):
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        described = json.load(file)
    described.pop("quantization_config")
    described["attn_implementation"] = "eager"
    torch.manual_seed(seed)
    model = transformers.GptOssForCausalLM(transformers.GptOssConfig.from_dict(described))
    return model.float()


def check_fast_forward(model, fast, ids):
    """The fast forward pass against Transformers', in float32."""
    reference = model.model(ids, use_cache=False).last_hidden_state
    got, _, _ = fast.hidden(ids, torch.ones_like(ids), torch.zeros((), device=ids.device))
    error = ((got - reference).norm() / reference.norm()).item()
    print(f"fast forward pass against Transformers: relative distance {error:.1e}", flush=True)
    if not error < 1e-3:
        raise RuntimeError("the fast forward pass does not compute what Transformers computes")


def check_compiled_forward(reference, fast, device):
    """The compiled forward pass, bf16 and packed, against the plain one in float32."""
    document = torch.arange(512, device=device)[None, :].div(100, rounding_mode="floor") + 1
    document = document.expand(BATCH, -1).contiguous()
    ids = torch.randint(0, checkpoint.VOCABULARY, document.shape, device=device)
    zero = torch.zeros((), device=device)
    with torch.no_grad():
        wanted, _, _ = reference.hidden(ids[:2], document[:2], zero)
        got, _, _ = fast.hidden(ids, document, zero)
    error = ((got[:2].float() - wanted).norm() / wanted.norm()).item()
    print(f"compiled forward pass against the plain one: {error:.1e}", flush=True)
    if not error < 0.08:
        raise RuntimeError("the compiled forward pass does not compute what the plain one does")


def _next_token_loss(hidden, head, ids, trained):
    logits = F.linear(hidden[:, :-1], head.to(hidden.dtype)).float()
    targets = torch.where(trained[:, 1:] > 0, ids[:, 1:], -100)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


_compiled_loss = torch.compile(_next_token_loss)


def losses(fast, head, heads, batch, rounding):
    ids, document, trained, labels, language = batch.long().unbind(1)
    hidden, balance, used = fast.hidden(ids, document, rounding)
    chat = (_compiled_loss if fast.flex else _next_token_loss)(hidden, head, ids, trained)
    tag = F.linear(hidden.float(), heads["pii"], heads["pii_bias"])
    tagging = F.cross_entropy(tag.flatten(0, 1), labels.flatten(), ignore_index=data.IGNORED)
    lang = F.linear(hidden.float(), heads["language"])
    naming = F.cross_entropy(lang.flatten(0, 1), language.flatten(), ignore_index=data.IGNORED)
    return {"chat": chat, "pii": tagging, "language": naming, "balance": balance}, used


class Trainer:
    def __init__(self, args, folder, shards):
        self.args = args
        self.device = args.device
        self.cuda = args.device == "cuda"
        if args.start:
            self.model = checkpoint.load(args.start, self.device).requires_grad_()
        else:
            self.model = new_model(folder, args.seed).to(self.device)
        size = sum(parameter.numel() for parameter in self.model.parameters())
        print(f"{size / 1e6:.1f} million parameters", flush=True)
        reference = fast_model.FastModel(self.model, torch.float32, compiled=False)
        ids = torch.randint(0, checkpoint.VOCABULARY, (2, 200), device=self.device)
        with torch.no_grad():
            check_fast_forward(self.model, reference, ids)
        dtype = torch.bfloat16 if self.cuda else torch.float32
        self.fast = fast_model.FastModel(self.model, dtype, args.compile)
        if args.compile:
            check_compiled_forward(reference, self.fast, self.device)
        self.heads = self.first_heads()
        everything = list(self.model.parameters()) + list(self.heads.values())
        self.parameters = everything
        matrices = [p for p in everything if p.dim() > 1]
        others = [p for p in everything if p.dim() <= 1]
        groups = [
            {"params": matrices, "weight_decay": 0.05},
            {"params": others, "weight_decay": 0.0},
        ]
        rate = torch.zeros((), device=self.device)  # tensors, so that a recorded step reads them
        self.rounding = torch.zeros((), device=self.device)
        self.optimizer = torch.optim.AdamW(
            groups, lr=rate, betas=(0.9, 0.98), fused=self.cuda, capturable=self.cuda
        )
        self.shards, self.rows, self.next = shards, None, 0
        self.input = torch.zeros(args.batch, len(data.FIELDS), data.ROW, dtype=torch.int16)
        self.input = self.input.to(self.device)
        self.graph, self.result = None, None

    def first_heads(self):
        if self.args.start:
            heads = checkpoint.load_heads(self.args.start, self.device)
        else:
            hidden, labels = checkpoint.HIDDEN, len(pii.LABELS)
            heads = {
                "pii": torch.zeros(labels, hidden, device=self.device),
                "pii_bias": torch.zeros(labels, device=self.device),
                "language": torch.zeros(len(words.LANGUAGES), hidden, device=self.device),
            }
        return {name: value.requires_grad_() for name, value in heads.items()}

    def load_batch(self):
        batch = self.args.batch
        if self.rows is None or self.next + batch > len(self.rows):
            self.rows, self.next = torch.from_numpy(self.shards.next()), 0
        self.next += batch
        self.input.copy_(self.rows[self.next - batch : self.next], non_blocking=True)

    def compute(self):
        """One step of what is in `input` and `rounding`."""
        self.optimizer.zero_grad(set_to_none=True)
        parts, used = losses(
            self.fast, self.model.lm_head.weight, self.heads, self.input, self.rounding
        )
        loss = parts["chat"] + sum(weight * parts[name] for name, weight in WEIGHTS.items())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()
        return {name: value.detach() for name, value in parts.items()}, used

    def record(self):
        """Makes the next steps replays of one CUDA graph: launching kernels takes longer than they."""
        self.optimizer.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = self.compute()

    def step(self, index, rate, rounding):
        for group in self.optimizer.param_groups:
            group["lr"].fill_(rate)
        self.rounding.fill_(rounding)
        self.load_batch()
        if not self.args.graph:
            self.result = self.compute()
            return
        if index < 4:  # compiles; on a side stream, as recording asks for
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.result = self.compute()
            torch.cuda.current_stream().wait_stream(stream)
            return
        if self.graph is None:
            self.record()
        self.graph.replay()

    def schedule(self, done):
        """(learning rate, rounding) at a fraction of the run."""
        if self.args.start:
            return 0.5 * self.args.rate * (1.0 - done), 1.0
        falling = 1.0 if done < 0.5 else 2.0 * (1.0 - done)
        rounding = (done - ROUNDING_BEGINS) / (ROUNDING_FULL - ROUNDING_BEGINS)
        return self.args.rate * falling, min(1.0, max(0.0, rounding))

    def run(self):
        start = time.monotonic()
        steps, measured = self.args.steps, None
        index = 0
        while steps is None or index < steps:
            if steps is None and index == 40:
                self.synchronize()
                measured = time.monotonic()
            if steps is None and index == 140:
                self.synchronize()
                each = (time.monotonic() - measured) / 100
                left = self.args.seconds - (time.monotonic() - start)
                steps = index + int(left / each)
                print(f"{each * 1e3:.2f} ms a step, so {steps} steps", flush=True)
            done = 0.0 if steps is None else index / steps
            rate, rounding = self.schedule(done)
            self.step(index, rate * min(1.0, (index + 1) / WARM_UP), rounding)
            index += 1
            if index % self.args.log_every == 0 or index == 1:
                self.report(index, *self.result, time.monotonic() - start)
        self.synchronize()
        return index, time.monotonic() - start

    def synchronize(self):
        if self.cuda:
            torch.cuda.synchronize()

    def report(self, index, parts, used, seconds):
        shares = used / used.sum(-1, keepdim=True) * checkpoint.EXPERTS
        text = " ".join(f"{name} {value.item():.4f}" for name, value in parts.items())
        print(
            f"step {index} {seconds:.0f} s: {text}; load of an expert {shares.min().item():.2f} to "
            f"{shares.max().item():.2f} of the mean",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True)
    parser.add_argument("--start", help="folder that stage 1 wrote; none: this is stage 1")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=BATCH, help="rows a step")
    parser.add_argument("--log-every", type=int, default=500)
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--no-graph", dest="graph", action="store_false")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.graph = args.graph and args.compile and args.device == "cuda"
    os.makedirs(args.output, exist_ok=True)
    start = time.monotonic()
    path = os.path.join(args.output, "tokenizer.json")
    if args.start:
        shutil.copyfile(os.path.join(args.start, "tokenizer.json"), path)
    else:
        source = words.Source(random.Random(f"tokenizer {args.seed}"), False)
        tokenizer.train(source, checkpoint.VOCABULARY, path)
    specials = data.Encoder(tokenizer.load(path)).specials
    checkpoint.write_json(args.output, "config.json", checkpoint.config(specials))
    print(f"tokenizer: {time.monotonic() - start:.1f} s", flush=True)
    # The processes are forked before the GPU is in use.
    seed = f"stage 2 {args.seed}" if args.start else args.seed
    shards = data.Shards(path, seed, 2 if args.start else 1, SHARD, args.processes)
    try:
        trainer = Trainer(args, args.output, shards)
        steps, seconds = trainer.run()
    finally:
        shards.close()
    checkpoint.write(args.output, dict(trainer.model.named_parameters()), specials)
    checkpoint.write_heads(args.output, trainer.heads)
    device = torch.cuda.get_device_name() if trainer.cuda else "CPU"
    print(
        f"trained {steps} steps of {args.batch} x {data.ROW} tokens in {seconds:.0f} s on {device}"
    )


if __name__ == "__main__":
    main()
