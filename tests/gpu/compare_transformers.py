#!/usr/bin/env python3
"""Compares our forward pass with Transformers' on one checkpoint: logits, routing, residual streams.

    compare_transformers.py --model DIR --forward BINARY --work DIR [--cpu-threads N]

The engines run one after the other, each in a process of its own, on the same files and the same random
tokens (transformers_reference.py, forward.cc). Transformers' float32 result is the reference, its bf16
result the yardstick. What must hold:

  - with the routing forced to the reference's, our logits are no farther from it than Transformers' bf16
    logits, whole prompts and one token at a time, and within the limits of any bf16 engine;
  - our arg-max is the reference's wherever its margin exceeds the error of Transformers' bf16 row;
  - layer by layer, each reading what the reference's layer read: what it adds to the residual stream is
    within the limits of a bf16 layer, and its router, free to choose, takes the reference's set of experts
    wherever the reference's gap between the last chosen and the next exceeds 0.05;
  - in a run where nothing is forced, no more choices beyond that gap differ than in Transformers' bf16 run,
    not counting choices that an earlier different one has reached; or else one in 200 at most, none of them
    beyond twice the gap: bf16 errors of the layers below add up in the router's logits, in either engine;
  - with --cpu-threads: our CPU backend agrees with the float32 result to 1e-4.

The last line is `N passed, N failed, N skipped`; the exit code is 1 if anything failed.
"""

import argparse
import json
import os
import subprocess
import sys

import torch

from results import Results

HERE = os.path.dirname(os.path.abspath(__file__))
ROUTER_GAP = 0.05
FREE_SHARE = 1 / 200
DECODE_ROWS = 64  # longer sequences are not run token by token
# model.md's limits for a whole bf16 model with forced routing.
MAX_RELATIVE, MAX_DEVIATION, MIN_COSINE = 0.05, 0.35, 0.998
LAYER_RELATIVE = 0.016  # of what one layer adds
FLOAT32_RELATIVE = 1e-4


def draw_cases(folder, lengths, seed):
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    generator = torch.Generator().manual_seed(seed)
    lengths = [min(length, config["max_position_embeddings"]) for length in lengths]
    # Not the padding rows at the end of the released vocabulary.
    vocabulary = min(config["vocab_size"], 199998)
    return [torch.randint(vocabulary, (n,), generator=generator).tolist() for n in lengths]


class Ours:
    """Runs of the forward binary: cases are collected, run in one process, then read."""

    def __init__(self, args, device, name):
        self.args = args
        self.device = device
        self.folder = os.path.join(args.work, name)
        self.cases = []
        self.index = None

    def add(self, ids, write, chunk=0, forced=None, inputs=None):
        """forced [layers, rows, k]; inputs: the file with what each layer reads."""
        case = {"ids": ids, "chunk": chunk, "write": write}
        if forced is not None:
            case["forced"] = forced.tolist()
        if inputs is not None:
            case["inputs"] = inputs
        self.cases.append(case)
        return len(self.cases) - 1

    def run(self):
        os.makedirs(self.folder, exist_ok=True)
        cases = os.path.join(self.folder, "cases.jsonl")
        with open(cases, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(case) + "\n" for case in self.cases)
        command = [self.args.forward, "--model", self.args.model, "--device", self.device]
        command += ["--input", cases, "--output", self.folder]
        command += ["--threads", str(max(1, self.args.cpu_threads))]
        env = dict(os.environ)
        if self.args.library_path:  # for this binary alone: PyTorch brings its own CUDA
            env["LD_LIBRARY_PATH"] = self.args.library_path
        subprocess.run(command, check=True, env=env)
        with open(os.path.join(self.folder, "index.json"), encoding="utf-8") as file:
            self.index = json.load(file)

    def read(self, case, name, dtype, *shape):
        path = os.path.join(self.folder, f"{case}.{name}")
        values = torch.from_file(path, dtype=dtype, size=os.path.getsize(path) // dtype.itemsize)
        return values.view(*shape)

    def logits(self, case):
        return self.read(case, "logits.f32", torch.float32, -1, self.index["vocab_size"])

    def hidden(self, case):
        states, size = self.index["layers"] + 2, self.index["hidden_size"]
        return self.read(case, "hidden.f32", torch.float32, states, -1, size)

    def experts(self, case):
        k = self.index["experts_per_token"]
        return self.read(case, "experts.i32", torch.int32, self.index["layers"], -1, k)


class Distance:
    """How far rows of values are from the reference's, over all cases that were added."""

    def __init__(self):
        self.error = self.square = self.sum = self.count = 0.0
        self.worst = 0.0
        self.cosine = 1.0

    def add(self, got, want):
        for g, w in zip(got.split(64), want.split(64)):
            g, w = g.double(), w.double()
            difference = g - w
            self.error += difference.square().sum().item()
            self.square += w.square().sum().item()
            self.sum += w.sum().item()
            self.count += w.numel()
            worst = difference.abs().max().item()
            self.worst = worst if not worst <= self.worst else self.worst  # keeps a NaN
            cosine = torch.cosine_similarity(g, w, dim=-1).min().item()
            self.cosine = cosine if not cosine >= self.cosine else self.cosine
        return self

    def relative(self):
        return (self.error / self.square) ** 0.5

    def deviation(self):
        """The worst error in standard deviations of the reference."""
        mean = self.sum / self.count
        return self.worst / (self.square / self.count - mean * mean) ** 0.5

    def within_limits(self):
        return (
            self.relative() <= MAX_RELATIVE
            and self.deviation() <= MAX_DEVIATION
            and self.cosine >= MIN_COSINE
        )

    def __str__(self):
        return (
            f"relative {self.relative():.3e}, worst {self.deviation():.3f} sd, "
            f"cosine {self.cosine:.5f}"
        )


def distance(got, want):
    total = Distance()
    for g, w in zip(got, want):
        total.add(g, w)
    return total


def compare_logits(results, name, ours, bf16, float32):
    """Lists of [rows, V], an entry per case."""
    rows = sum(len(case) for case in float32)
    mine, yardstick = distance(ours, float32), distance(bf16, float32)
    results.check(
        f"{name}: logits no farther from float32 than Transformers' bf16",
        mine.relative() <= yardstick.relative(),
        f"{rows} rows; ours {mine}; Transformers bf16 {yardstick}",
    )
    results.check(f"{name}: logits within the limits of a bf16 engine", mine.within_limits())
    agreed = compared = 0
    for o, b, f in zip(ours, bf16, float32):
        best = f.topk(2, dim=-1)
        clear = best.values[:, 0] - best.values[:, 1] > (b - f).abs().amax(dim=-1)
        compared += clear.sum().item()
        agreed += (clear & (o.argmax(dim=-1) == best.indices[:, 0])).sum().item()
    detail = f"{agreed} of {compared} rows with a clear margin, {rows} in all"
    results.check(f"{name}: same arg-max where the margin is clear", agreed == compared > 0, detail)


def print_states(name, ours, bf16, float32):
    """Relative error of the residual stream: after the embedding, each layer, the final norm."""
    print(f"{name}: relative error of the hidden states, ours / Transformers bf16:")
    cells = []
    for state in range(len(float32[0])):
        want = [case[state] for case in float32]
        mine = distance([case[state] for case in ours], want).relative()
        yardstick = distance([case[state] for case in bf16], want).relative()
        cells.append(f"{mine:.2e}/{yardstick:.2e}")
    print("  " + "  ".join(cells), flush=True)


def compare_added(results, name, ours, bf16, float32):
    """What each layer adds to the stream it read, [layers + 2, rows, H] of each case."""
    mine, yardstick = [], []
    for layer in range(len(float32[0]) - 2):
        read = [case[layer] for case in float32]
        want = [case[layer + 1] - x for case, x in zip(float32, read)]
        for engine, errors in ((ours, mine), (bf16, yardstick)):
            got = [case[layer + 1] - x for case, x in zip(engine, read)]
            errors.append(distance(got, want).relative())
    results.check(
        f"{name}: what a layer adds is within the limits of a bf16 layer",
        max(mine) <= LAYER_RELATIVE,
        "  ".join(f"{m:.2e}/{y:.2e}" for m, y in zip(mine, yardstick))
        + " by layer, ours / Transformers bf16",
    )


def gaps(router_logits, k):
    """[layers, rows]: the last chosen logit less the next one."""
    best = router_logits.topk(k + 1, dim=-1).values
    return best[..., k - 1] - best[..., k]


def same_sets(a, b):
    """[..., k] expert ids -> [...]"""
    return (a.sort(dim=-1).values == b.sort(dim=-1).values).all(dim=-1)


class Choices:
    """Counts of sets of experts that are, or are not, the reference's."""

    def __init__(self):
        self.clear = self.wrong = self.near = self.near_differ = self.reached = 0
        self.largest_gap = 0.0

    def add(self, experts, want, reached):
        """experts [layers, rows, k], reached [layers, rows]: not counted."""
        same = same_sets(experts.long(), want["experts"])
        gap = gaps(want["router_logits"], experts.shape[-1])
        clear = gap > ROUTER_GAP
        self.clear += (clear & ~reached).sum().item()
        self.wrong += (clear & ~same & ~reached).sum().item()
        self.near += (~clear & ~reached).sum().item()
        self.near_differ += (~clear & ~same & ~reached).sum().item()
        self.reached += reached.sum().item()
        self.largest_gap = max([self.largest_gap] + gap[~same & ~reached].tolist())

    def __str__(self):
        text = f"{self.clear - self.wrong} of {self.clear}, {self.near_differ} of {self.near} nearer "
        text += f"to a tie differ, largest gap that differs {self.largest_gap:.4f}"
        return text + (f", {self.reached} behind one that differs" if self.reached else "")


def layer_choices(cases, float32):
    """Each layer read the reference's stream: no choice reaches another."""
    choices = Choices()
    for experts, want in zip(cases, float32):
        choices.add(experts, want, torch.zeros(experts.shape[:-1], dtype=torch.bool))
    return choices


def free_choices(cases, float32):
    """A row is reached by what differed in a lower layer, at its own position or an earlier one."""
    choices = Choices()
    for experts, want in zip(cases, float32):
        same = same_sets(experts.long(), want["experts"])
        clean = torch.ones_like(same)
        for layer in range(1, len(same)):
            clean[layer] = clean[layer - 1] & same[layer - 1].cummin(dim=0).values
        choices.add(experts, want, ~clean)
    return choices


def compare_routing(results, name, layers, free, reference):
    """Ours, [layers, rows, k] of each case: layer by layer, and with nothing forced."""
    k = layers[0].shape[-1]
    would = [case["router_logits"].topk(k).indices for case in reference["bf16_layers"]]
    mine = layer_choices(layers, reference["float32"])
    results.check(
        f"{name}: layer by layer, the reference's experts beyond a gap of {ROUTER_GAP}",
        mine.wrong == 0 and mine.clear > 0,
        f"{mine}; Transformers bf16: {layer_choices(would, reference['float32'])}",
    )
    mine = free_choices(free, reference["float32"])
    yardstick = free_choices(
        [case["experts"] for case in reference["bf16_free"]], reference["float32"]
    )
    by_chance = mine.wrong <= FREE_SHARE * mine.clear and mine.largest_gap <= 2 * ROUTER_GAP
    results.check(
        f"{name}: free routing, the reference's experts beyond a gap of {ROUTER_GAP}",
        mine.clear > 0 and (mine.wrong <= yardstick.wrong or by_chance),
        f"{mine}; Transformers bf16: {yardstick}",
    )


def compare_device(results, args, cases, reference):
    """Whole prompts, then, where the kernels for few tokens run, the short ones token by token."""
    ours = Ours(args, args.device, "ours")
    short = [i for i, ids in enumerate(cases) if len(ids) <= DECODE_ROWS]
    modes = {"whole prompts": (range(len(cases)), 0), "token by token": (short, 1)}
    runs = {}
    for mode, (chosen, chunk) in modes.items():
        for i in chosen:
            want = reference["float32"][i]
            inputs = os.path.join(args.work, f"{i}.inputs.f32")
            want["hidden"][:-2].numpy().tofile(inputs)
            ids, forced = cases[i], want["experts"]
            runs[mode, i] = (
                ours.add(ids, ["logits", "hidden"], chunk, forced),
                ours.add(ids, ["hidden"], chunk, forced, inputs),
                ours.add(ids, ["routing"], chunk, inputs=inputs),
                ours.add(ids, ["routing"], chunk),
            )
    ours.run()
    for mode, (chosen, _) in modes.items():
        name = f"{args.name}, {mode}"
        forced, forced_layers, layers, free = zip(*(runs[mode, i] for i in chosen))
        chosen_of = {kind: [results[i] for i in chosen] for kind, results in reference.items()}
        of = lambda kind, what: [case[what] for case in chosen_of[kind]]
        logits = [ours.logits(case) for case in forced]
        compare_logits(results, name, logits, of("bf16", "logits"), of("float32", "logits"))
        hidden = [ours.hidden(case) for case in forced]
        print_states(name, hidden, of("bf16", "hidden"), of("float32", "hidden"))
        hidden = [ours.hidden(case) for case in forced_layers]
        compare_added(results, name, hidden, of("bf16_layers", "hidden"), of("float32", "hidden"))
        layers = [ours.experts(case) for case in layers]
        compare_routing(results, name, layers, [ours.experts(case) for case in free], chosen_of)


def compare_cpu(results, args, cases, float32):
    ours = Ours(args, "cpu", "ours_cpu")
    runs = [
        ours.add(ids, ["logits"], forced=want["experts"]) for ids, want in zip(cases, float32)
    ]
    ours.run()
    mine = distance([ours.logits(run) for run in runs], [want["logits"] for want in float32])
    results.check(
        f"{args.name}, our CPU float32: logits are Transformers' float32",
        mine.relative() <= FLOAT32_RELATIVE,
        str(mine),
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--forward", required=True, help="the binary //tests/gpu:forward")
    parser.add_argument("--library-path", help="where the binary finds its shared libraries")
    parser.add_argument("--work", required=True, help="folder for results, a few GB")
    parser.add_argument("--name", help="in the report; default: the folder's name")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="ours")
    parser.add_argument(
        "--reference-device", default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--lengths", default="1,17,64,300", help="of the sequences")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cpu-threads", type=int, default=0, help="also compare our CPU backend")
    parser.add_argument("--results", help="write the outcomes as JSON")
    args = parser.parse_args()
    args.name = args.name or os.path.basename(os.path.normpath(args.model))
    os.makedirs(args.work, exist_ok=True)

    cases = draw_cases(args.model, [int(n) for n in args.lengths.split(",")], args.seed)
    path = os.path.join(args.work, "cases.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(cases, file)
    command = [sys.executable, os.path.join(HERE, "transformers_reference.py")]
    command += ["--model", args.model, "--cases", path, "--output", args.work]
    subprocess.run(command + ["--device", args.reference_device], check=True)
    reference = {
        kind: torch.load(os.path.join(args.work, kind + ".pt"), mmap=True)
        for kind in ("float32", "bf16", "bf16_layers", "bf16_free")
    }
    results = Results()
    compare_device(results, args, cases, reference)
    if args.cpu_threads > 0:
        compare_cpu(results, args, cases, reference["float32"])
    if args.results:
        results.write(args.results)
    print(results.summary())
    sys.exit(1 if results.count("failed") else 0)


if __name__ == "__main__":
    main()
