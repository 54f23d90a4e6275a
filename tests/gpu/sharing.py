"""KV blocks that are shared, taken away and computed again on a GPU: several completions of one prompt
in a cache that holds two of them, prompts in short chunks, prompts that were computed before. Held
against the same requests alone, with whole prompts and without the prefix cache."""

import os
import subprocess

from service import Server, ids

TOKENS = 180
COMPLETIONS = 8
SEED = 500
# 32 blocks of 16 tokens of each kind. A completion comes to 15, of which 3 are the prompt's and
# shared: eight that run at once want 99 full ones.
BLOCKS = 32
BLOCK_BYTES = {"cuda": 32768, "cpu": 65536}  # a full and a sliding one, of the tiny checkpoint
# Two bf16 engines agree on a greedy token unless the best two are nearer than this.
NEAR_TIE = 0.5
# Of the log-probabilities of tokens that both drew: the median. With random weights a near-tie of a
# router that falls the other way moves single ones further.
MEDIAN_LIMIT = 0.1
# A draw that falls on the other side of a bound gives an id nearby, since ids are lined up to draw
# from. Of 512 almost equally likely ones, the median completion; another draw is further away.
NEARBY = 16


def prompt_of(index, length=60):
    return [(31 * index + 17 * i + i * i) % 490 + 1 for i in range(length)]


def complete(server, prompt, temperature, seed=SEED, n=1, tokens=TOKENS):
    """One object for each completion."""
    answer = server.ask(
        "generate", "--tokens", ids(prompt), "--max-tokens", str(tokens), "--ignore-eos",
        "--temperature", str(temperature), "--seed", str(seed), "--logprobs", "5", "-n", str(n),
    )  # fmt: skip
    return answer.get("completions", [answer])


def alike(got, want):
    """Tokens up to the first that differs."""
    pairs = enumerate(zip(got["tokens"], want["tokens"]))
    return next((i for i, (mine, theirs) in pairs if mine != theirs), len(want["tokens"]))


def distances(got, want):
    """Of the log-probabilities of the tokens alike."""
    pairs = list(zip(got["logprobs"], want["logprobs"]))[: alike(got, want)]
    return [abs(mine["logprob"] - theirs["logprob"]) for mine, theirs in pairs]


def explained(got, want):
    """Whether a greedy completion is the same, or leaves the other one at a near-tie."""
    at = alike(got, want)
    if at == len(want["tokens"]):
        return len(got["tokens"]) == at
    top = want["logprobs"][at]["top"]
    drawn = [entry["logprob"] for entry in top if entry["token"] == got["tokens"][at]]
    return len(drawn) > 0 and top[0]["logprob"] - drawn[0] < NEAR_TIE


def median(values):
    return sorted(values)[len(values) // 2] if values else float("inf")


def check_greedy(results, name, got, want):
    """Of many completions one may be off: see MEDIAN_LIMIT."""
    wrong = sum(not explained(mine, theirs) for mine, theirs in zip(got, want))
    apart = median([d for pair in zip(got, want) for d in distances(*pair)])
    same = sum(mine["tokens"] == theirs["tokens"] for mine, theirs in zip(got, want))
    detail = f"{same} of {len(want)} token-identical, {wrong} differ without a near-tie, {apart:.4f}"
    ok = len(got) == len(want) and wrong <= len(want) // 8 and apart < MEDIAN_LIMIT
    results.check(name, ok, detail)


def check_drawn(results, name, got, want):
    lengths = [alike(mine, theirs) for mine, theirs in zip(got, want)]
    moved = [
        abs(mine["tokens"][at] - theirs["tokens"][at]) if at < TOKENS else 0
        for at, mine, theirs in zip(lengths, got, want)
    ]
    apart = median([d for pair in zip(got, want) for d in distances(*pair)])
    whole = all(len(completion["tokens"]) == TOKENS for completion in got)
    several = len({tuple(completion["tokens"]) for completion in got}) == len(got)
    ok = whole and several and median(moved) <= NEARBY and apart < MEDIAN_LIMIT
    detail = f"drawn alike {lengths} of {TOKENS}, then ids {moved} apart, {apart:.4f}"
    results.check(name, ok, detail)


def check_sharing(results, conclave, environment, log, model, device):
    flags = ["--model", model, "--workers", "1", "--device", device]
    prompts = [prompt_of(index) for index in range(COMPLETIONS)]
    forked = prompt_of(COMPLETIONS)
    plain = flags + ["--no-prefix-cache"]
    with Server(conclave, environment, os.path.join(log, "alone"), *plain) as server:
        greedy = [complete(server, prompt, 0)[0] for prompt in prompts]
        forked_greedy = complete(server, forked, 0)
        drawn = [complete(server, forked, 0.9, SEED + i)[0] for i in range(COMPLETIONS)]
    small = flags + ["--kv-cache-bytes", str(BLOCKS * BLOCK_BYTES[device])]
    small += ["--prefill-chunk", "16", "--max-running", str(COMPLETIONS)]
    with Server(conclave, environment, os.path.join(log, "shared"), *small) as server:
        got = [complete(server, prompt, 0)[0] for prompt in prompts]
        check_greedy(results, "sharing: prompts in chunks agree with whole ones", got, greedy)

        got = complete(server, forked, 0, n=COMPLETIONS)
        first = server.ask("status")["counters"]["preemptions"]
        name = f"sharing: n = {COMPLETIONS} in {BLOCKS} blocks pauses some"
        results.check(name, first > 0, f"{first} preemptions")
        name = "sharing: those, greedy, agree with one alone"
        check_greedy(results, name, got, forked_greedy * COMPLETIONS)
        cached = [completion["usage"]["cached_tokens"] for completion in got]
        ok = all(count == 48 for count in cached[1:])
        results.check("sharing: they compute their prompt once", ok, str(cached))

        got = complete(server, forked, 0.9, n=COMPLETIONS)
        more = server.ask("status")["counters"]["preemptions"] - first
        name = f"sharing: drawn, with {more} preemptions, they agree with their seeds alone"
        check_drawn(results, name, got, drawn)

        again = [(complete(server, p, 0)[0], complete(server, p, 0)[0]) for p in prompts]
        hits = [second["usage"]["cached_tokens"] for _, second in again]
        ok = all(hit == 48 for hit in hits)
        results.check("sharing: a prompt that comes again is found", ok, str(hits))
        check_greedy(results, "sharing: prefix hits agree with none", [b for _, b in again], greedy)


def run_sharing(results, args, here, environment):
    binaries = os.path.join(here, "bin/service")
    environment = dict(environment, CONCLAVE_BIN_DIR=binaries)
    conclave = os.path.join(binaries, "conclave")
    model = os.path.join(here, "demo/tiny_gpt_oss")
    try:
        check_sharing(
            results, conclave, environment, os.path.join(args.log, "sharing"), model, "cuda"
        )
    except (RuntimeError, subprocess.SubprocessError, KeyError, ValueError) as error:
        results.add("sharing", "failed", str(error))
