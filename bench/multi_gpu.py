#!/usr/bin/env python3
"""Scaling over the GPUs of one host: every shape (dp x tp) at every batch size, in one call.

    tests/gpu/build FOLDER        # where the checkout and nvcc are
    FOLDER/multi_gpu.py           # where the GPUs are: 120b, random weights, one rank for each GPU
    FOLDER/multi_gpu.py --ranks 4 --layers 2 --batches 1,8 --offline 0    # on one GPU, as an exercise

Each shape is a coordinator and its workers, asked by `conclave bench`: tokens/s with all streams
decoding, prefill of long prompts, and for the widest data-parallel shape offline throughput (all
requests at once, as many tokens out as in). Shapes that no longer fit into --seconds are left out,
and named. Ends with a table in Markdown, a column for each shape; `--json FILE` keeps everything.
"""

import argparse
import json
import os
import sys
import tempfile
import time

from groups import Group, count_gpus
from libraries import environment
from serve_gpu import bench, nvidia_smi

HERE = os.path.dirname(os.path.abspath(__file__))
READY_SECONDS = 300
# A long prompt costs so few forward passes that two requests tell enough.
PREFILL_REQUESTS = 2


def shapes_of(ranks):
    """(dp, tp): one rank, then all ranks by data, by tensor, and half and half."""
    wide = [(ranks, 1), (1, ranks)] + ([(2, ranks // 2)] if ranks % 2 == 0 else [])
    return list(dict.fromkeys([(1, 1), *wide]))


class Service(Group):
    """A group that serves the benchmarked model."""

    ready_seconds = READY_SECONDS

    def __init__(self, args, log, dp, tp, exchange, running):
        env = dict(environment(), CONCLAVE_BIN_DIR=os.path.join(HERE, "bin/service"))
        super().__init__(HERE, env, log, dp, tp, exchange)
        self.coordinator_flags = ["--model", args.model, "--weights", "random"]
        self.coordinator_flags += ["--dp", str(dp), "--tp", str(tp), "--workers", str(dp * tp)]
        self.coordinator_flags += ["--exchange", exchange, "--max-running", str(running)]
        self.coordinator_flags += ["--prefill-chunk", str(args.prefill_chunk)]
        self.coordinator_flags += ["--max-step-tokens", str(args.prefill_chunk + running)]
        if args.layers:
            self.coordinator_flags += ["--layers", str(args.layers)]


def measure(args, dp, tp, exchange, batches, offline):
    """One service, all its figures by name; what fails is named, the rest goes on."""
    figures, runs = {}, []
    running = max(1, -(-max([*batches, offline]) // dp))  # sequences that one dp group runs
    log = tempfile.mkdtemp(prefix=f"multi-gpu-{dp}x{tp}-")
    start = time.monotonic()
    with Service(args, log, dp, tp, exchange, running) as service:
        figures["load, s"] = time.monotonic() - start
        for batch in batches:
            run = bench(service, batch, 2 * batch, args.input_len, args.output_len)
            figures[f"decode, {batch} streams, tok/s"] = run["steady"]["tokens_per_second"]
            runs.append(run)
        for length in args.prefill:
            run = bench(service, 1, PREFILL_REQUESTS, length, 2)
            figures[f"prefill of {length:,}, tok/s"] = length / run["prefill_seconds"]["p50"]
            runs.append(run)
        if offline:
            run = bench(service, offline, offline, args.input_len, args.input_len, warmup=0)
            figures["offline, tok/s of a GPU"] = run["output_tokens_per_second"] / (dp * tp)
            runs.append(run)
        ranks = service.ask("status")["ranks"]
    loads = [sum(sum(layer["load"]) for layer in rank["layers"]) for rank in ranks]
    if len(loads) > 1 and sum(loads):
        figures["load of the busiest rank / mean"] = max(loads) * len(loads) / sum(loads)
    return figures, runs


def table(columns):
    """[(shape, figures)] as Markdown, a row for each figure that any shape has."""
    rows = list(dict.fromkeys(name for _, figures in columns for name in figures))
    yield "| | " + " | ".join(name for name, _ in columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for row in rows:
        cells = (figures.get(row) for _, figures in columns)
        yield f"| {row} | " + " | ".join(shown(cell) for cell in cells) + " |"


def shown(value):
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def numbers(text):
    return [int(item) for item in text.split(",") if int(item)]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=os.path.join(HERE, "configs/gpt_oss_120b"))
    parser.add_argument("--layers", type=int, help="the first N alone")
    parser.add_argument("--ranks", type=int, default=count_gpus(), help="default: one for each GPU")
    parser.add_argument("--batches", type=numbers, default=[1, 8, 32, 128, 512])
    parser.add_argument("--one-rank-batches", type=numbers, default=[1, 8, 32, 128])
    parser.add_argument("--prefill", type=numbers, default=[8192, 32768], help="0: none")
    parser.add_argument("--offline", type=int, default=256, help="requests for each rank; 0: none")
    parser.add_argument("--input-len", type=int, default=1024)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--prefill-chunk", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=540, help="no shape begins after it")
    parser.add_argument("--json", help="file for all results")
    args = parser.parse_args()

    print(f"{args.ranks} ranks on {count_gpus()} x {nvidia_smi('name')}; "
          f"{time.strftime('%Y-%m-%d')}; {' '.join(sys.argv)}", flush=True)  # fmt: skip
    columns, kept = [], []
    plan = [(dp, tp, "auto") for dp, tp in shapes_of(args.ranks)]
    plan += [(args.ranks, 1, "fixed")] if args.ranks > 1 else []
    for dp, tp, exchange in plan:
        name = f"dp {dp}, tp {tp}" + ("" if exchange == "auto" else f", {exchange}")
        if time.monotonic() > START + args.seconds:
            print(f"left out, no time: {name}", flush=True)
            continue
        batches = args.batches if dp * tp > 1 else args.one_rank_batches
        offline = args.offline * args.ranks if (tp, exchange) == (1, "auto") and dp > 1 else 0
        try:
            figures, runs = measure(args, dp, tp, exchange, batches, offline)
        except (RuntimeError, KeyError, TypeError) as error:
            print(f"failed: {name}: {str(error)[-500:]}", flush=True)
            continue
        columns.append((name, figures))
        kept.append({"dp": dp, "tp": tp, "exchange": exchange, "figures": figures, "runs": runs})
        print(f"{name}: {json.dumps(figures)}", flush=True)
        if args.json:
            with open(args.json, "w", encoding="utf-8") as file:
                json.dump(kept, file, indent=1)
    print("\n".join(table(columns)))


START = time.monotonic()
if __name__ == "__main__":
    main()
