"""Groups of GPU workers, as real processes over NCCL: every shape and exchange mode against one rank,
the same bits for the same plan, generation and classification mixed, what is counted on the devices,
experts that move while streams run, a rank that is killed, one that is stopped.

Ranks that share a card get a host id of their own each, or NCCL refuses them; it then takes its
network transport, over loopback. That is right, and slow."""

import concurrent.futures
import os
import signal
import socket
import subprocess
import threading
import time

from service import CLASSIFY_LIMIT, Server, classify, generate, prompt_of, relative

# (dp, tp, exchange modes)
SHAPES = (
    (2, 1, ("fixed", "exact")),
    (1, 2, ("replicated", "fixed", "exact")),
    (2, 2, ("fixed", "exact")),
    (4, 1, ("fixed",)),
    (8, 1, ("fixed", "exact")),
)
# Besides, where each rank has a GPU of its own: what is written into the peers' memory directly.
DIRECT = ((2, 1), (1, 2), (2, 2))
DIRECT_KIB = 1024
PAIRS_PER_TOKEN = 4 * 4  # layers, experts per token
READY_SECONDS = 60
# Of a first token's log-probability, against one rank: the median over the prompts. With random
# weights a near-tie of the router that falls the other way moves single ones further.
MEDIAN_LIMIT = 0.1
KILLED_SECONDS = 2
STOPPED_SECONDS = 10
PROMPTS = range(1, 16)


def count_gpus():
    """Those that CUDA shows to the workers."""
    if os.environ.get("CUDA_VISIBLE_DEVICES"):
        return len(os.environ["CUDA_VISIBLE_DEVICES"].split(","))
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return max(1, listed.stdout.count("GPU "))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Group(Server):
    """A coordinator and its workers, started by hand. Without the prefix cache the same request is
    the same plan."""

    ready_seconds = READY_SECONDS

    def __init__(self, here, environment, log, dp, tp, exchange, prefix_cache=False):
        binaries = os.path.join(here, "bin/service")
        super().__init__(os.path.join(binaries, "conclave"), environment, log)
        self.binaries = binaries
        self.internal = f"127.0.0.1:{free_port()}"
        self.address = f"127.0.0.1:{free_port()}"
        self.workers = {}
        model = os.path.join(here, "demo/tiny_gpt_oss")
        self.coordinator_flags = ["--model", model, "--dp", str(dp), "--tp", str(tp)]
        self.coordinator_flags += ["--workers", str(dp * tp), "--exchange", exchange]
        for head in ("sequence", "token"):
            self.coordinator_flags += ["--head", f"{head}={model}/head_{head}"]
        self.coordinator_flags += [] if prefix_cache else ["--no-prefix-cache"]
        self.size = dp * tp
        self.cards = list(range(count_gpus()))
        self.worker_flags = []

    def start(self, name, command, **variables):
        with open(os.path.join(self.log, f"{name}.log"), "a", encoding="utf-8") as log:
            return subprocess.Popen(
                command, env=dict(self.environment, **variables), stdout=log, stderr=log
            )

    def address_of(self, index):
        """Where a worker's peers reach it."""
        return "127.0.0.1"

    def start_worker(self, index):
        command = [os.path.join(self.binaries, "conclave-worker"), "--coordinator", self.internal]
        command += ["--advertise-address", self.address_of(index), "--interface", "lo"]
        command += ["--device", "cuda", *self.worker_flags]
        command += ["--cuda-device", str(self.cards[index % len(self.cards)])]
        apart = {"NCCL_HOSTID": f"rank-{index}", "NCCL_IB_DISABLE": "1"}
        self.workers[index] = self.start(
            f"worker-{index}", command, **(apart if self.size > len(self.cards) else {})
        )

    def __enter__(self):
        command = [os.path.join(self.binaries, "conclave-coordinator"), "--listen", self.address]
        command += ["--internal-listen", self.internal, "--health-listen", "127.0.0.1:0"]
        self.coordinator = self.start("coordinator", command + self.coordinator_flags)
        for index in range(self.size):
            self.start_worker(index)
        try:
            self.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def wait_ready(self):
        end = time.monotonic() + self.ready_seconds
        while time.monotonic() < end:
            code, status, _ = self.run("status")
            if code == 0 and status["state"] == "READY":
                return
            time.sleep(0.1)
        raise RuntimeError(f"the group was not ready after {self.ready_seconds} s")

    def __exit__(self, *_):
        processes = [self.coordinator, *self.workers.values()]
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def first_tokens(server):
    """[prompts][5] log-probabilities of the first token's best."""
    answers = [generate(server, prompt_of(index), 1) for index in PROMPTS]
    return [{e["token"]: e["logprob"] for e in a["logprobs"][0]["top"]} for a in answers]


def median_distance(got, want):
    """Over the prompts: the largest difference between entries that both lists have."""
    worst = []
    for mine, theirs in zip(got, want):
        common = mine.keys() & theirs.keys()
        worst.append(max((abs(mine[t] - theirs[t]) for t in common), default=9.0))
    return sorted(worst)[len(worst) // 2]


def mixed(group):
    """Generations of ragged lengths with classifications between them, at once."""

    def one(index):
        if index % 3 == 2:
            return classify(group, "token", prompt_of(index))
        return generate(group, prompt_of(index), 4 + index)

    with concurrent.futures.ThreadPoolExecutor(18) as pool:
        return list(pool.map(one, range(18)))


def check_mixed(results, group, name, want):
    got = mixed(group)
    right = all(len(got[i]["tokens"]) == 4 + i for i in range(18) if i % 3 != 2)
    apart = sorted(relative(got[i], want[i]) for i in range(2, 18, 3))
    median = apart[len(apart) // 2]
    detail = f"classifications' median distance {median:.3f}"
    ok = right and median < CLASSIFY_LIMIT
    results.check(f"{name}: 18 ragged generations and classifications at once", ok, detail)


def loads(status):
    """[ranks] token-expert pairs computed."""
    return [sum(sum(layer["load"]) for layer in rank["layers"]) for rank in status["ranks"]]


def settled(group, pairs):
    """The status once the ranks' loads add up to `pairs`, or after a while whatever it is."""
    for _ in range(50):
        status = group.ask("status")
        if sum(loads(status)) == pairs(status):
            break
        time.sleep(0.1)
    return status


def check_counts(results, group, name, exchanges):
    status = settled(group, lambda s: s["counters"]["tokens_computed"] * PAIRS_PER_TOKEN)
    pairs = status["counters"]["tokens_computed"] * PAIRS_PER_TOKEN
    counted = loads(status)
    detail = f"{counted}, {pairs} in all"
    results.check(f"{name}: every token's experts are counted once", sum(counted) == pairs, detail)
    if not exchanges:
        return
    ranks = status["ranks"]
    copies = [rank["copies_to_rank"] for rank in ranks]
    moved = [rank["bytes_to_rank"] for rank in ranks]
    own = all(copies[r][r] == 0 and moved[r][r] == 0 for r in range(len(ranks)))
    # A copy carries 64 or more values out and back.
    carried = all(
        sum(moved[r]) >= sum(copies[r]) * 128 and sum(copies[r]) == ranks[r]["dispatched_copies"]
        for r in range(len(ranks))
    )
    some = sum(map(sum, copies)) > 0 and all(sum(row) > 0 for row in moved)
    results.check(f"{name}: copies and bytes by destination", own and carried and some, str(copies))


def check_rebalance(results, group, name, want):
    """Streams run one after the other, so that some are under way when experts move."""
    before = group.ask("status")
    moved = threading.Event()

    def stream(_):
        lengths = []
        while not lengths or not moved.is_set():
            lengths.append(len(generate(group, [1, 2, 3], 150)["tokens"]))
        return lengths

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        streams = [pool.submit(stream, index) for index in range(6)]
        try:
            for _ in range(100):
                if group.ask("status")["counters"]["running"] >= 3:
                    break
            done = group.ask("rebalance", "--replicas", "4")
        finally:
            moved.set()
        lengths = [length for future in streams for length in future.result()]
    detail = f"{done['seconds']:.2f} s, {len(lengths)} streams"
    whole = all(length == 150 for length in lengths)
    results.check(f"{name}: streams go on while experts move", whole, detail)
    moves = [m for m in done["ranks"] if m["gained"] > 0]
    each = {m["loaded_bytes"] / m["gained"] for m in moves}
    after = group.ask("status")
    some = all(r["loaded_bytes"] < r["memory"]["weight_bytes"] for r in after["ranks"])
    ok = done["epoch"] == before["epoch"] + 1 and len(moves) > 0 and len(each) == 1 and some
    detail = f"{[m['gained'] for m in done['ranks']]} experts gained, {sorted(each)} bytes each"
    results.check(f"{name}: ranks load the experts that moved and no others", ok, detail)
    predicted = [layer["imbalance_after"] < layer["imbalance_before"] for layer in done["layers"]]
    results.check(f"{name}: the placement evens out the load", any(predicted), str(done["layers"]))
    distance = median_distance(first_tokens(group), want)
    results.check(f"{name}: then agrees with one rank", distance < MEDIAN_LIMIT, f"{distance:.3f}")


def check_shape(results, group, name, want, want_mixed):
    distance = median_distance(first_tokens(group), want)
    results.check(f"{name}: agrees with one rank", distance < MEDIAN_LIMIT, f"{distance:.3f}")
    first = generate(group, prompt_of(11), 16)
    again = generate(group, prompt_of(11), 16)
    results.check(f"{name}: the same plan gives the same bits", first == again)
    check_mixed(results, group, name, want_mixed)
    check_counts(results, group, name, "replicated" not in name)
    return first


def seconds_until_failed(group, harm):
    """Streams run, `harm` is done; how long until all have ended with UNAVAILABLE; -1: not so."""
    arguments = ["generate", "--tokens", "1,2,3", "--max-tokens", "100", "--ignore-eos"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    streams = [group.popen(*arguments, **pipes) for _ in range(4)]
    for stream in streams:
        stream.stdout.read(1)  # the first text is there
    start = time.monotonic()
    harm()
    try:
        errors = [stream.communicate(timeout=30)[1] for stream in streams]
    finally:
        for stream in streams:
            stream.kill()
    seconds = time.monotonic() - start
    unavailable = all("UNAVAILABLE" in error for error in errors)
    return seconds if unavailable and all(s.returncode == 1 for s in streams) else -1


def check_faults(results, group, name, before):
    killed = group.workers[1]
    seconds = seconds_until_failed(group, killed.kill)
    killed.wait()
    ok = 0 <= seconds < KILLED_SECONDS
    results.check(f"{name}: kill -9 of a rank ends all streams", ok, f"{seconds:.2f} s")
    group.start_worker(1)
    group.wait_ready()
    same = generate(group, prompt_of(11), 16) == before
    results.check(f"{name}: a worker that joins again gives the same bits", same)
    stopped = group.workers[0]
    seconds = seconds_until_failed(group, lambda: stopped.send_signal(signal.SIGSTOP))
    ok = 0 <= seconds < STOPPED_SECONDS
    results.check(f"{name}: a rank that is stopped ends all streams", ok, f"{seconds:.2f} s")
    stopped.kill()
    stopped.wait()
    group.start_worker(0)
    group.wait_ready()
    same = generate(group, prompt_of(11), 16) == before
    results.check(f"{name}: and is replaced", same)


def run_groups(results, args, here, environment):
    environment = dict(environment, CONCLAVE_BIN_DIR=os.path.join(here, "bin/service"))
    logs = os.path.join(args.log, "groups")
    try:
        with Group(here, environment, os.path.join(logs, "one"), 1, 1, "auto") as group:
            want = first_tokens(group)
            want_mixed = mixed(group)
            check_counts(results, group, "1 x 1", False)
        log = os.path.join(logs, "cached")
        with Group(here, environment, log, 1, 1, "auto", prefix_cache=True) as group:
            first_tokens(group)
            distance = median_distance(first_tokens(group), want)
            results.check("prefix hits: agree with none", distance < MEDIAN_LIMIT, f"{distance:.3f}")
            hits = group.ask("status")["counters"]["prefix_cache"]["hit_tokens"]
            results.check("prefix hits: there are some", hits > 0, str(hits))
        for dp, tp, modes in SHAPES:
            for mode in modes:
                name = f"{dp} x {tp}, {mode}"
                log = os.path.join(logs, f"{dp}x{tp}-{mode}")
                with Group(here, environment, log, dp, tp, mode) as group:
                    bits = check_shape(results, group, name, want, want_mixed)
                    if mode == "fixed" and dp > 1 and dp * tp == 4:
                        check_rebalance(results, group, name, want)
                    if (dp, tp, mode) == (2, 1, "fixed"):
                        check_faults(results, group, name, bits)
        check_direct(results, environment, logs, here, want, want_mixed)
    except (RuntimeError, subprocess.SubprocessError, KeyError, ValueError) as error:
        results.add("groups", "failed", str(error))


def check_direct(results, environment, logs, here, want, want_mixed):
    for dp, tp in DIRECT:
        name = f"{dp} x {tp}, direct"
        if dp * tp > count_gpus():
            results.add(name, "skipped", f"{count_gpus()} GPUs")
            continue
        group = Group(here, environment, os.path.join(logs, name), dp, tp, "fixed")
        group.worker_flags = ["--direct-kib", str(DIRECT_KIB)]
        with group:
            bits = check_shape(results, group, name, want, want_mixed)
            check_faults(results, group, name, bits)
