#!/usr/bin/env python3
"""The held-out sets through Conclave: `conclave serve` with CPU workers, greedy decoding.

    evaluate.py --model demo/small_gpt_oss --conclave bazel-bin/client/conclave [--workers 4]

Prints the figures beside those that evaluate_transformers.py recorded in the model's folder, and exits
1 where they are more than a point apart. Needs `tokenizers` and `numpy`; no PyTorch.
"""

import argparse
import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import data
import score
import tokenizer as tokenizers

LIMIT = 160  # tokens of a completion
TRIES = 6


class Server:
    """`conclave serve` until the end of the `with` block."""

    def __init__(self, conclave, model, workers):
        self.conclave = conclave
        self.command = [conclave, "serve", "--model", model, "--workers", str(workers)]
        for name in ("language", "pii"):
            self.command += ["--head", f"{name}={os.path.join(model, 'head_' + name)}"]
        self.command += ["--device", "cpu", "--listen", "127.0.0.1:0"]

    def __enter__(self):
        self.logs = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            self.command + ["--log-dir", self.logs.name],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for line in self.process.stdout:
            if line.startswith("serving "):
                self.address = line.split()[1]
                return self
        raise RuntimeError("the server did not come up")

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        self.process.wait()
        self.logs.cleanup()

    def ask(self, *arguments):
        command = [self.conclave, *arguments, "--server", self.address, "--json"]
        for _ in range(TRIES):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return json.loads(done.stdout.strip().splitlines()[-1])
            if "UNAVAILABLE" not in done.stderr:
                break
            # On a busy machine a worker can miss its heartbeats; the group forms anew.
            print(done.stderr.strip(), file=sys.stderr)
            time.sleep(5)
        raise RuntimeError(done.stderr)

    def complete(self, prompt):
        ids = ",".join(map(str, prompt))
        arguments = ("--tokens", ids, "--max-tokens", str(LIMIT), "--temperature", "0")
        return self.ask("generate", *arguments)["tokens"]

    def language(self, text):
        labels = self.ask("classify", "--head", "language", f"--text={text}")["labels"]
        return max(labels, key=lambda label: label["logit"])["label"]

    def spans(self, text):
        found = self.ask("classify", "--head", "pii", f"--text={text}")["spans"]
        return {_trimmed(span, text) for span in found}


def _trimmed(span, text):
    begin, end = span["start_char"], span["end_char"]
    while begin < end and text[begin] == " ":
        begin += 1
    return begin, end, span["label"]


def evaluate(server, sets, encoder, at_once):
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        completions = pool.map(server.complete, [case["prompt"] for case in sets["chat"]])
        chat = [
            (case["skill"], *score.judge(encoder.tokenizer, case, ids)[:2])
            for case, ids in zip(sets["chat"], completions)
        ]
        found = pool.map(server.spans, [case["text"] for case in sets["pii"]])
        pairs = [(set(case["spans"]), spans) for case, spans in zip(sets["pii"], found)]
        named = pool.map(server.language, [case["text"] for case in sets["language"]])
        right = [case["language"] == name for case, name in zip(sets["language"], named)]
    return score.summary(chat, pairs, right)


def compare(result, recorded):
    """Whether the figures are within a point of the recorded ones."""
    near = True
    for name, scale in (
        ("chat_right", 1),
        ("well_formed", 1),
        ("sequence_accuracy", 1),
        ("span_f1", 100),
    ):
        got, wanted = result[name] * scale, recorded[name] * scale
        print(f"{name:18} {got:6.2f} through Conclave, {wanted:6.2f} through Transformers")
        near = near and abs(got - wanted) <= 1
    return near


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--conclave", required=True)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--chats", type=int, help="default: as recorded")
    parser.add_argument("--texts", type=int, help="default: as recorded")
    parser.add_argument("--at-once", type=int, default=8, help="requests")
    parser.add_argument("--output", help="file for the figures")
    args = parser.parse_args()
    with open(os.path.join(args.model, "transformers.json"), encoding="utf-8") as file:
        recorded = json.load(file)
    encoder = data.Encoder(tokenizers.load(os.path.join(args.model, "tokenizer.json")))
    chats = args.chats or recorded["cases"]["chat"]
    texts = args.texts or recorded["cases"]["texts"]
    sets = data.held_out(recorded["seed"], encoder, chats, texts)
    with Server(args.conclave, args.model, args.workers) as server:
        result = evaluate(server, sets, encoder, args.at_once)
    result["seed"] = recorded["seed"]
    result["with"] = f"conclave serve, {args.workers} CPU workers"
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
            file.write("\n")
    print(json.dumps(result))
    sys.exit(0 if compare(result, recorded) else 1)


if __name__ == "__main__":
    main()
