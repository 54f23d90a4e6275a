#!/usr/bin/env python3
"""Our GPU ops beside a peer's: same card, same process, the same clock.

    bazel build --config=cuda //bench/compare:libops.so
    bench/compare/compare.py --library bazel-bin/bench/compare/libops.so
    bench/compare/compare.py --library bazel-bin/bench/compare/libops.so --moe my_peer.py

Attention is compared with PyTorch's scaled_dot_product_attention, which knows no sinks, on KV that is
contiguous where ours is paged. The MoE layer is compared with what --moe names: a Python file with

    def make(hidden, intermediate, experts, k, layers):
        "Random weights of so many layers."
        return run       # run(layer, x, expert_ids, weights) -> bf16 [tokens, hidden]

where x is bf16 [tokens, hidden], expert_ids int32 and weights float32 [tokens, k]; run is called once for
each routing before it is called in a CUDA graph, and may then keep what it made of the routing. Each figure is the median over replays of a graph whose launches rotate over several layers,
more than the L2 cache holds. A ratio above 1: ours is faster.
"""

import argparse
import ctypes
import importlib.util
import statistics
import time

import torch

HEADS, KV_HEADS, HEAD_DIM = 64, 8, 64
HIDDEN, CHOICES = 2880, 4
ROTATING_BYTES = 200e6


def graph_time(calls, enqueue):
    """Median microseconds of one call."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in range(calls):  # what is done at first use stays out of the graph
            enqueue(call)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in range(calls):
            enqueue(call)
    times = []
    for _ in range(24):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * begin.elapsed_time(end) / calls)
    return statistics.median(times[3:])


def sdpa_time(rows, queries, context):
    size = rows * context * KV_HEADS * HEAD_DIM * 4  # bytes of K and V
    layers = max(1, min(24, int(ROTATING_BYTES / size) + 1))
    make = lambda heads, tokens: torch.randn(
        rows, heads, tokens, HEAD_DIM, device="cuda", dtype=torch.bfloat16
    )
    q = make(HEADS, queries)
    caches = [(make(KV_HEADS, context), make(KV_HEADS, context)) for _ in range(layers)]

    def enqueue(call):
        k, v = caches[call % layers]
        torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=queries > 1, enable_gqa=True
        )

    return graph_time(24 if queries == 1 else 4, enqueue)


def show(op, size, ours, peer):
    ratio = f"{peer:.1f} | {peer / ours:.2f}" if peer else "- | -"
    print(f"| {op} | {size} | {ours:.1f} | {ratio} |", flush=True)


def compare_attention(library):
    for rows, context in ((1, 1024), (1, 8192), (1, 32768), (32, 1024), (32, 8192), (128, 1024)):
        ours = library.conclave_decode_us(rows, context)
        show("attention, decode", f"{rows} x {context:,}", ours, sdpa_time(rows, 1, context))
    for tokens in (2048, 8192):
        ours = library.conclave_prefill_us(tokens)
        show("attention, prefill", f"{tokens:,}", ours, sdpa_time(1, tokens, tokens))


def moe_times(path, experts, layers, sizes):
    """Microseconds of the peer by number of tokens."""
    spec = importlib.util.spec_from_file_location("peer", path)
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    run = peer.make(HIDDEN, HIDDEN, experts, CHOICES, layers)
    times = {}
    for tokens in sizes:
        x = torch.randn(tokens, HIDDEN, device="cuda", dtype=torch.bfloat16)
        routings = [
            torch.rand(tokens, experts, device="cuda").topk(CHOICES).indices.int() for _ in range(8)
        ]
        weights = torch.full((tokens, CHOICES), 1 / CHOICES, device="cuda")
        times[tokens] = graph_time(
            4 if tokens > 1024 else 12,
            lambda call: run(call % layers, x, routings[call % 8], weights),
        )
    return times


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--library", required=True, help="libops.so")
    parser.add_argument("--moe", help="a peer's MoE layer (see above)")
    parser.add_argument("--experts", type=int, default=128, help="128: 120b, 32: 20b")
    parser.add_argument("--layers", type=int, default=3, help="that the launches rotate over")
    parser.add_argument("--tokens", default="1,8,32,64,128,256,1024,4096", help="of the MoE layer")
    parser.add_argument("--only", choices=("attention", "moe"))
    args = parser.parse_args()
    torch.cuda.init()
    library = ctypes.CDLL(args.library)
    for name in ("conclave_moe_us", "conclave_decode_us", "conclave_prefill_us"):
        getattr(library, name).restype = ctypes.c_double
    print(f"{torch.cuda.get_device_name()}; torch {torch.__version__}; {time.strftime('%F %H:%M')}")
    print("| op | size | ours, us | peer, us | peer / ours |\n|---|---|---|---|---|")
    if args.only != "moe":
        compare_attention(library)
    if args.only != "attention":
        sizes = [int(size) for size in args.tokens.split(",")]
        ours = {n: library.conclave_moe_us(args.experts, args.layers, n) for n in sizes}
        peer = moe_times(args.moe, args.experts, args.layers, sizes) if args.moe else {}
        for n in sizes:
            show("MoE layer", f"{n:,} tokens", ours[n], peer.get(n))


if __name__ == "__main__":
    main()
