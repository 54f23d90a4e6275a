"""The whole service on one GPU, through the `conclave` command: coordinator and worker processes,
generation, both classifications, many ragged requests at once, the same bits for the same plan."""

import concurrent.futures
import json
import os
import signal
import subprocess
import threading

# Of the median. With random weights a near-tie of the router that falls the other way makes two right
# engines differ; nonsense is further away than this.
CLASSIFY_LIMIT = 0.35
START_SECONDS = 120


class Server:
    """`conclave serve` until the end of the `with` block; `address` answers requests."""

    def __init__(self, conclave, environment, log, *flags, start_seconds=START_SECONDS):
        self.start_seconds = start_seconds
        self.conclave = conclave
        self.environment = environment
        os.makedirs(log, exist_ok=True)
        self.log = log
        self.command = [conclave, "serve", "--listen", "127.0.0.1:0", "--log-dir", log, *flags]
        self.address = None

    def __enter__(self):
        errors = open(os.path.join(self.log, "serve.log"), "w", encoding="utf-8")
        self.process = subprocess.Popen(
            self.command, env=self.environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        watchdog = threading.Timer(self.start_seconds, self.process.kill)
        watchdog.start()
        try:
            for line in self.process.stdout:
                if line.startswith("serving "):
                    self.address = line.split()[1]
                    return self
        finally:
            watchdog.cancel()
        self.process.wait()
        with open(errors.name, encoding="utf-8") as file:
            raise RuntimeError("the server did not come up: " + file.read()[-2000:])

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def popen(self, *arguments, **options):
        """`conclave ARGUMENTS` as a process of its own."""
        command = [self.conclave, *arguments, "--server", self.address]
        return subprocess.Popen(command, env=self.environment, **options)

    def run(self, *arguments):
        """Exit code, last line of stdout as JSON (None without one), stderr."""
        command = [self.conclave, *arguments, "--server", self.address, "--json"]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        lines = done.stdout.strip().splitlines()
        return done.returncode, json.loads(lines[-1]) if lines else None, done.stderr

    def ask(self, *arguments):
        code, answer, errors = self.run(*arguments)
        if code != 0:
            raise RuntimeError(f"{' '.join(arguments)}: {errors}")
        return answer


def ids(values):
    return ",".join(str(value) for value in values)


def relative(got, want):
    distance = sum((a - b) ** 2 for a, b in zip(got, want)) ** 0.5
    return distance / max(1e-9, sum(b * b for b in want) ** 0.5)


def generate(server, prompt, tokens, seed=0, temperature=0.0):
    return server.ask(
        "generate", "--tokens", ids(prompt), "--max-tokens", str(tokens), "--ignore-eos",
        "--temperature", str(temperature), "--seed", str(seed), "--logprobs", "5",
    )  # fmt: skip


def prompt_of(index):
    return [(7 * index + 13 * i) % 500 + 1 for i in range(1 + (5 * index) % 90)]


def classify(server, head, prompt):
    answer = server.ask("classify", "--head", head, "--tokens", ids(prompt))
    if "labels" in answer:
        return [label["logit"] for label in answer["labels"]]
    return [logit for token in answer["tokens"] for logit in token["logits"]]


def classify_all(server, head):
    return [classify(server, head, prompt_of(index)) for index in range(1, 16)]


def many_at_once(server, results):
    """64 generations of ragged lengths with classifications between them."""

    def one(index):
        if index % 8 == 7:
            return len(classify(server, "token", prompt_of(index))) > 0
        tokens = 4 + index % 29
        answer = generate(server, prompt_of(index), tokens, seed=index, temperature=0.7)
        usage = answer["usage"]
        return (
            len(answer["tokens"]) == tokens
            and usage["prompt_tokens"] == len(prompt_of(index))
            and usage["completion_tokens"] == tokens
            and answer["finish_reason"] == "length"
        )

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        right = list(pool.map(one, range(64)))
    results.check("service: 64 ragged requests at once", all(right), f"{sum(right)} of 64 right")


def run_service(results, args, here, environment):
    try:
        check_service(results, args, here, environment)
    except (RuntimeError, subprocess.SubprocessError, KeyError, ValueError) as error:
        results.add("service", "failed", str(error))


def check_service(results, args, here, environment):
    conclave = os.path.join(here, "bin/service/conclave")
    environment = dict(environment, CONCLAVE_BIN_DIR=os.path.join(here, "bin/service"))
    model = os.path.join(here, "demo/tiny_gpt_oss")
    flags = ["--model", model, "--workers", "1"]
    for head in ("sequence", "token"):
        flags += ["--head", f"{head}={model}/head_{head}"]

    doctor = subprocess.run(
        [conclave, "doctor", "--json"], env=environment, capture_output=True, text=True, check=False
    )
    cuda = json.loads(doctor.stdout)["cuda"] if doctor.returncode == 0 else {}
    results.check("service: doctor says CUDA runs", cuda.get("available") is True, str(cuda))

    logs = os.path.join(args.log, "service")
    with Server(conclave, environment, os.path.join(logs, "cpu"), *flags) as cpu:
        want = {head: classify_all(cpu, head) for head in ("sequence", "token")}
    # Without the prefix cache the same request is the same plan.
    cuda_flags = flags + ["--device", "cuda", "--no-prefix-cache"]
    with Server(conclave, environment, os.path.join(logs, "cuda"), *cuda_flags) as gpu:
        for head, logits in want.items():
            apart = sorted(map(relative, classify_all(gpu, head), logits))
            median = apart[len(apart) // 2]
            name = f"service: {head} classifications are the CPU's"
            results.check(name, median < CLASSIFY_LIMIT, f"relative, median {median:.3f}")
        first = generate(gpu, prompt_of(11), 24)
        again = generate(gpu, prompt_of(11), 24)
        results.check("service: the same plan gives the same bits", first == again)
        many_at_once(gpu, results)
        rank = gpu.ask("status")["ranks"][0]
        steps_seen = rank["mxfp4_launches"] > 0 and rank["device"].startswith("cuda")
        results.check("service: MXFP4 kernels ran", steps_seen, str(rank["mxfp4_launches"]))
        code, _, errors = gpu.run("generate", "--tokens", "99999", "--max-tokens", "1")
        bad = code == 1 and len(errors.strip().splitlines()) == 1
        results.check("service: a bad token id is one line", bad, errors.strip())
    plain = cuda_flags + ["--no-graphs"]
    with Server(conclave, environment, os.path.join(logs, "no_graphs"), *plain) as gpu:
        alone = generate(gpu, prompt_of(11), 24)
        results.check("service: graphs change no bit", alone == first)
