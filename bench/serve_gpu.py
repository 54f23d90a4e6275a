#!/usr/bin/env python3
"""Speed of the whole service on one GPU or several of one host, by `conclave bench` against `conclave serve`.

    tests/gpu/build FOLDER                      # where the checkout and nvcc are
    FOLDER/serve_gpu.py                         # where the GPU is: 120b, random weights
    FOLDER/serve_gpu.py --model DIR --weights file

Prints, of the first GPU and its worker, what the driver counts as used memory, how long loading took and at what rate, tokens/s with
all streams decoding (the window that `conclave bench` calls steady), and prefill of one long prompt
(prompt tokens over the server's own prefill time). `--json FILE` keeps all of it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

from libraries import environment
from service import Server

HERE = os.path.dirname(os.path.abspath(__file__))


def nvidia_smi(field):
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]


def anonymous_bytes(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        fields = dict(line.split(":", 1) for line in file)
    return 1024 * int(fields["RssAnon"].split()[0])


def bench(server, concurrency, requests, input_len, output_len, warmup=None):
    answer = server.ask(
        "bench", "--concurrency", str(concurrency), "--requests", str(requests), "--warmup",
        str(concurrency if warmup is None else warmup), "--input-len", str(input_len), "--output-len", str(output_len),
        "--temperature", "0",
    )  # fmt: skip
    return answer["runs"][0]


def show_decode(run):
    steady = run["steady"]["tokens_per_second"]
    between = run["itl_seconds"]["p50"]
    print(
        f"| decode | {run['concurrency']} | {steady or 0:,.0f} | "
        f"{run['output_tokens_per_second']:,.0f} | {1e3 * between:.2f} |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=os.path.join(HERE, "configs/gpt_oss_120b"))
    parser.add_argument("--weights", choices=("random", "file"), default="random")
    parser.add_argument("--layers", type=int, help="of random weights: the first N")
    parser.add_argument("--workers", type=int, default=1, help="one for each GPU")
    parser.add_argument("--tp", type=int, default=1, help="dp is workers / tp")
    parser.add_argument("--concurrency", default="1,8,32,64,128")
    parser.add_argument("--input-len", type=int, default=1024)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--prefill-len", type=int, default=8192, help="0: leave it out")
    parser.add_argument("--prefill-chunk", type=int, default=2048)
    parser.add_argument("--serve", nargs="*", default=[], help="more flags of conclave serve")
    parser.add_argument("--json", help="file for all results")
    args = parser.parse_args()

    streams = [int(item) for item in args.concurrency.split(",")]
    binaries = os.path.join(HERE, "bin/service")
    flags = ["--model", args.model, "--weights", args.weights, "--device", "cuda"]
    flags += ["--workers", str(args.workers), "--tp", str(args.tp)]
    flags += ["--max-running", str(max(streams)), "--prefill-chunk", str(args.prefill_chunk)]
    flags += ["--max-step-tokens", str(args.prefill_chunk + max(streams)), *args.serve]
    if args.layers:
        flags += ["--layers", str(args.layers)]
    log = tempfile.mkdtemp(prefix="serve-gpu-")
    before = int(nvidia_smi("memory.used"))
    print(f"{nvidia_smi('name')}; {time.strftime('%Y-%m-%d %H:%M')}; {' '.join(sys.argv)}")
    start = time.monotonic()
    with Server(
        os.path.join(binaries, "conclave"), dict(environment(), CONCLAVE_BIN_DIR=binaries), log,
        *flags, start_seconds=900,
    ) as server:  # fmt: skip
        seconds = time.monotonic() - start
        rank = server.ask("status")["ranks"][0]
        used = (int(nvidia_smi("memory.used")) - before) << 20
        memory = rank["memory"]
        facts = {
            "load_seconds": seconds,
            "weight_bytes": memory["weight_bytes"],
            "kv_bytes": memory["kv_bytes"],
            "used_bytes": used,
            "used_without_kv_bytes": used - memory["kv_bytes"],
            "host_anonymous_bytes": anonymous_bytes(rank["pid"]),
        }
        print(
            f"loaded {memory['weight_bytes'] / 1e9:.1f} GB in {seconds:.1f} s "
            f"({memory['weight_bytes'] / 1e9 / seconds:.2f} GB/s); the driver counts "
            f"{used / 1e9:.1f} GB, {facts['used_without_kv_bytes'] / 1e9:.1f} GB of it without the "
            f"KV cache of {memory['kv_bytes'] / 1e9:.1f} GB; anonymous host memory of the worker "
            f"{facts['host_anonymous_bytes'] / 1e9:.2f} GB"
        )
        print("| what | streams | steady tok/s | output tok/s | ms between tokens |")
        print("|---|---|---|---|---|")
        runs = []
        for count in streams:
            runs.append(bench(server, count, 2 * count, args.input_len, args.output_len))
            show_decode(runs[-1])
        if args.prefill_len:
            run = bench(server, 1, 4, args.prefill_len, 2)
            runs.append(run)
            prefill = run["prefill_seconds"]["p50"]
            print(f"prefill of {args.prefill_len}: {args.prefill_len / prefill:,.0f} tok/s")
            print(f"time to first token {1e3 * run['ttft_seconds']['p50']:.1f} ms")
        facts["mxfp4_launches"] = server.ask("status")["ranks"][0]["mxfp4_launches"]
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"facts": facts, "runs": runs}, file, indent=1)


if __name__ == "__main__":
    main()
