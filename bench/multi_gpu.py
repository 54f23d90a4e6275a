#!/usr/bin/env python3
"""Scaling over the GPUs of one host: every shape (dp x tp) at every batch size, in one call.

    tests/gpu/build FOLDER        # where the checkout and nvcc are
    FOLDER/multi_gpu.py           # where the GPUs are: 120b, random weights, one rank for each GPU
    FOLDER/multi_gpu.py --ranks 4 --layers 2 --batches 1,8 --offline 0    # on one GPU, as an exercise

First, whether the shapes agree with one rank: four layers of 120b with the routing forced, and the
trained demo model's answers, routing free; and what an exchange takes by the bytes it moves. Then
the service in each shape, a coordinator and its workers, asked by `conclave bench`: tokens/s with
all streams decoding, prefill of long prompts, and for the widest data-parallel shape offline
throughput (all requests at once, as many tokens out as in). Shapes that leave GPUs idle run beside
each other. What no longer fits into --seconds is left out, and named. Ends with a table in Markdown,
a column for each shape; `--json FILE` keeps everything.
"""

import argparse
import concurrent.futures
import json
import os
import subprocess
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
WIDE_TEST = "bin/tests/gpu/group_wide_test"
WIDE_CASES = ("*RoutingIsForced", "*TimesOfDispatch*")
WIDE_SECONDS = 120
# Of the demo model's skills: some with one right answer, some that take a while.
QUESTIONS = [f"What is {a} {sign} {b}?" for a, b in ((7, 5), (23, 41), (68, 17), (90, 36)) for sign in "+-"]
QUESTIONS += [f"What is the capital of {land}?" for land in ("France", "Spain", "Norway", "Japan", "Peru")]
QUESTIONS += [f"Spell the word {word}." for word in ("table", "garden", "window", "orange", "school")]
QUESTIONS += [f"Sort these numbers: {row}." for row in ("9, 3, 27, 14", "5, 81, 40", "66, 12, 19, 2, 33")]
QUESTIONS += ["Hello!", "Which day comes after Monday?", "What is the opposite of hot?"]


class Service(Group):
    """A group that serves the benchmarked model on the given GPUs."""

    ready_seconds = READY_SECONDS

    def __init__(self, args, dp, tp, exchange, direct_kib, cards, running):
        env = dict(environment(), CONCLAVE_BIN_DIR=os.path.join(HERE, "bin/service"))
        log = tempfile.mkdtemp(prefix=f"multi-gpu-{dp}x{tp}-{exchange}-")
        super().__init__(HERE, env, log, dp, tp, exchange)
        self.cards = cards
        self.worker_flags = ["--direct-kib", str(direct_kib)]
        self.coordinator_flags = ["--model", args.model, "--weights", "random"]
        self.coordinator_flags += ["--dp", str(dp), "--tp", str(tp), "--workers", str(dp * tp)]
        self.coordinator_flags += ["--exchange", exchange, "--max-running", str(running)]
        self.coordinator_flags += ["--prefill-chunk", str(args.prefill_chunk)]
        self.coordinator_flags += ["--max-step-tokens", str(args.prefill_chunk + running)]
        if args.layers:
            self.coordinator_flags += ["--layers", str(args.layers)]


class Demo(Group):
    def __init__(self, dp, tp, cards):
        env = dict(environment(), CONCLAVE_BIN_DIR=os.path.join(HERE, "bin/service"))
        super().__init__(HERE, env, tempfile.mkdtemp(prefix=f"demo-{dp}x{tp}-"), dp, tp, "auto")
        self.cards = cards
        flags = ["--model", os.path.join(HERE, "demo/small_gpt_oss"), "--dp", str(dp), "--tp", str(tp)]
        self.coordinator_flags = [*flags, "--workers", str(dp * tp), "--no-prefix-cache"]

    def answers(self):
        def answer(question):
            return self.ask("chat", "--message", question, "--temperature", "0")

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            return [(a["reasoning"], a["text"]) for a in pool.map(answer, QUESTIONS)]


def check_agreement(args, shapes, kept):
    """Whether the shapes say what one rank says."""
    log = os.path.join(tempfile.mkdtemp(prefix="multi-gpu-"), "wide")
    with open(log, "w", encoding="utf-8") as file:
        command = [os.path.join(HERE, WIDE_TEST), "--gtest_filter=" + ":".join(WIDE_CASES)]
        process = subprocess.Popen(command, cwd=HERE, env=environment(), stdout=file, stderr=file)
        try:
            code = process.wait(WIDE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    with open(log, encoding="utf-8", errors="replace") as file:
        lines = file.read().splitlines()
    shown = ("| ", "120b shape", "[  FAILED", "[       OK")
    found = [line for line in lines if line.startswith(shown)] if code == 0 else lines[-40:]
    print("\n".join(found), f"\n{WIDE_TEST}: exit code {code}", flush=True)
    kept["wide"] = {"code": code, "lines": found}
    want = None
    for dp, tp in shapes:
        with Demo(dp, tp, args.cards) as group:
            got = group.answers()
        want = want or got
        same = sum(a == b for a, b in zip(got, want))
        print(f"demo model, dp {dp}, tp {tp}: {same} of {len(want)} answers as of one rank", flush=True)
        kept[f"demo {dp}x{tp}"] = {"same": same, "of": len(want)}


def output_len(args, batch, dp):
    """Tokens for each stream, so that the first still runs when the last prompt has been read."""
    steps = -(-batch // dp) * args.input_len // args.prefill_chunk
    return max(args.output_len, 64 + steps * 3 // 2)


def memory_used(card):
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", str(card)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure(args, dp, tp, exchange, direct_kib, cards, batches, prefill, offline):
    """One service, all its figures by name, and what `conclave bench` said."""
    figures, runs = {}, []
    running = max(1, -(-max([*batches, offline]) // dp))  # sequences that one dp group runs
    start = time.monotonic()
    with Service(args, dp, tp, exchange, direct_kib, cards, running) as service:
        figures["load, s"] = time.monotonic() - start
        before = memory_used(cards[0])
        for batch in batches:
            length = output_len(args, batch, dp)
            run = bench(service, batch, batch, args.input_len, length, warmup=min(batch, 8))
            figures[f"decode, {batch} streams, tok/s"] = run["steady"]["tokens_per_second"]
            runs.append(run)
        for length in prefill:
            run = bench(service, 1, PREFILL_REQUESTS, length, 2)
            figures[f"prefill of {length:,}, tok/s"] = length / run["prefill_seconds"]["p50"]
            runs.append(run)
        if offline:
            run = bench(service, offline, offline, args.input_len, args.input_len, warmup=0)
            figures["offline, tok/s of a GPU"] = run["output_tokens_per_second"] / (dp * tp)
            runs.append(run)
        figures["memory that serving added, MiB"] = memory_used(cards[0]) - before
        ranks = service.ask("status")["ranks"]
    loads = [sum(sum(layer["load"]) for layer in rank["layers"]) for rank in ranks]
    if len(loads) > 1 and sum(loads):
        figures["load of the busiest rank / mean"] = max(loads) * len(loads) / sum(loads)
    return figures, runs


class Measurements:
    def __init__(self, args):
        self.args = args
        self.columns = []
        self.kept = {"agreement": {}, "shapes": []}

    def add(self, dp, tp, exchange="auto", nccl=False, cards=None, batches=None, prefill=None, offline=0):
        """A column of the table; what fails is named, the rest goes on. nccl: nothing goes past it."""
        args = self.args
        name = f"dp {dp}, tp {tp}" + ("" if exchange == "auto" else f", {exchange}")
        name += ", NCCL alone" if nccl else ""
        direct_kib = 0 if nccl else args.direct_kib
        cards = args.cards[: dp * tp] if cards is None else cards
        batches = args.batches if batches is None else batches
        prefill = args.prefill if prefill is None else prefill
        if time.monotonic() > START + args.seconds:
            print(f"left out, no time: {name}", flush=True)
            return
        begun = time.monotonic() - START
        try:
            figures, runs = measure(
                args, dp, tp, exchange, direct_kib, cards, batches, prefill, offline
            )
        except (RuntimeError, KeyError, TypeError, subprocess.SubprocessError) as error:
            print(f"failed: {name}: {str(error)[-500:]}", flush=True)
            return
        self.columns.append((name, figures))
        shape = {"dp": dp, "tp": tp, "exchange": exchange, "direct_kib": direct_kib}
        shape |= {"figures": figures, "runs": runs}
        self.kept["shapes"].append(shape)
        took = f"{begun:.0f} to {time.monotonic() - START:.0f} s"
        print(f"{name} ({took}): {json.dumps(figures)}", flush=True)
        self.write()

    def write(self):
        if self.args.json:
            with open(self.args.json, "w", encoding="utf-8") as file:
                json.dump(self.kept, file, indent=1)

    def run(self):
        args, ranks = self.args, self.args.ranks
        halves = [(2, ranks // 2)] if ranks % 2 == 0 and ranks > 2 else []
        wide = [(ranks, 1), (1, ranks), *halves] if ranks > 1 else []
        if args.agreement:
            check_agreement(args, [(1, 1), *wide], self.kept["agreement"])
            self.write()

        def one_rank():
            self.add(1, 1, cards=args.cards[:1], batches=args.one_rank_batches)

        def two_ranks():
            for dp, tp in ((2, 1), (1, 2)):
                self.add(dp, tp, cards=args.cards[-2:])

        if len(args.cards) > 2 and ranks > 2:
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                for task in [pool.submit(one_rank), pool.submit(two_ranks)]:
                    task.result()
        else:
            one_rank()
        for dp, tp in wide:
            offline = args.offline * ranks if tp == 1 else 0
            batches = args.batches + (args.more_batches if tp == 1 else [])
            self.add(dp, tp, batches=batches, offline=offline)
        # What it is worth not to go through NCCL, and to send padding instead of counts.
        for dp, tp in wide[:2] if args.direct_kib else []:
            self.add(dp, tp, nccl=True, prefill=[])
        many = [batch for batch in args.batches + args.more_batches if batch >= 64 * ranks]
        if many and wide:
            self.add(ranks, 1, "exact", batches=many, prefill=[])


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
    parser.add_argument("--more-batches", type=numbers, default=[1024], help="of the widest dp")
    parser.add_argument("--prefill", type=numbers, default=[8192, 32768], help="0: none")
    parser.add_argument("--offline", type=int, default=256, help="requests for each rank; 0: none")
    parser.add_argument("--direct-kib", type=int, default=1024, help="of the workers")
    parser.add_argument("--input-len", type=int, default=1024)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--prefill-chunk", type=int, default=2048)
    parser.add_argument("--no-agreement", dest="agreement", action="store_false")
    parser.add_argument("--seconds", type=float, default=500, help="no shape begins after it")
    parser.add_argument("--json", help="file for all results")
    args = parser.parse_args()
    args.cards = list(range(count_gpus()))

    print(f"{args.ranks} ranks on {count_gpus()} x {nvidia_smi('name')}; "
          f"{time.strftime('%Y-%m-%d %H:%M')}; {' '.join(sys.argv)}", flush=True)  # fmt: skip
    measurements = Measurements(args)
    measurements.run()
    print("\n".join(table(measurements.columns)))


START = time.monotonic()
if __name__ == "__main__":
    main()
