#!/usr/bin/env python3
"""Our tokenizer beside tiktoken: same texts, same run, one thread each; ids must be equal.

  pip install tiktoken && bazel build //bench:tokenizer
  bench/tokenizer_vs_tiktoken.py [--rounds N] [TEXT...]

Without TEXT three texts are made from what comes with Python: its library's sources (code), the
text of its help (prose), and its test texts of East Asian encodings beside tests/data's cases
(mixed). Both sides take turns; speeds are medians by the time of the thread.
"""

import argparse
import array
import base64
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import tiktoken

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = ROOT / "bazel-bin/bench/tokenizer"
VOCABULARY = ROOT / "tests/data/o200k_base.tiktoken"
MAX_BYTES = 8 << 20

# Of o200k_base.
PATTERN = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
])


def load_tiktoken():
    ranks = {}
    for line in VOCABULARY.read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    return tiktoken.Encoding("o200k_base", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})


def code():
    library = pathlib.Path(os.__file__).parent
    text = "".join(p.read_text(encoding="utf-8") for p in sorted(library.glob("*.py")))
    return text


def prose():
    import pydoc_data.topics
    return "\n".join(pydoc_data.topics.topics.values())


def mixed():
    parts = []
    for line in (ROOT / "tests/data/o200k_harmony_cases.jsonl").read_text().splitlines():
        parts.append(json.loads(line).get("text", ""))
    tests = pathlib.Path(os.__file__).parent / "test"
    for path in sorted(tests.glob("**/*utf*8*.txt")) + sorted(tests.glob("cjkencodings/*-utf8.txt")):
        parts.append(path.read_bytes().decode("utf-8", errors="replace"))
    return "\n".join(parts)


def make_texts(folder):
    paths = []
    for make in (code, prose, mixed):
        data = make().encode("utf-8", errors="replace")[:MAX_BYTES]
        path = folder / make.__name__
        path.write_text(data.decode("utf-8", errors="ignore"), encoding="utf-8")
        paths.append(path)
    return paths


def run_ours(path, folder):
    out = subprocess.run(
        [BINARY, "--tokenizer", VOCABULARY, "--rounds", "1", "--ids", folder, path],
        check=True, capture_output=True, text=True).stdout.split()
    ids = array.array("i", (folder / (path.name + ".ids")).read_bytes())
    return float(out[-1]), ids


def run_theirs(encoding, text, size):
    start = time.thread_time()
    ids = encoding.encode_ordinary(text)
    return size * 1e-6 / (time.thread_time() - start), ids


def compare(encoding, path, rounds, folder):
    text = path.read_bytes().decode("utf-8")
    size = len(text.encode("utf-8"))
    ours, theirs = [], []
    for _ in range(rounds):
        speed, our_ids = run_ours(path, folder)
        ours.append(speed)
        speed, their_ids = run_theirs(encoding, text, size)
        theirs.append(speed)
    if list(our_ids) != their_ids:
        sys.exit(f"{path}: ids differ")
    us, them = statistics.median(ours), statistics.median(theirs)
    print(f"| {path.name} | {size / 1e6:.2f} | {len(our_ids)} | {us:.1f} | {them:.1f} | {us / them:.2f} |",
          flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("texts", nargs="*", type=pathlib.Path)
    flags = parser.parse_args()
    encoding = load_tiktoken()
    print(f"tiktoken {tiktoken.__version__}, medians of {flags.rounds} rounds, one thread\n")
    print("| text | MB | tokens | ours MB/s | tiktoken MB/s | ratio |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for path in flags.texts or make_texts(folder):
            compare(encoding, path, flags.rounds, folder)


if __name__ == "__main__":
    main()
