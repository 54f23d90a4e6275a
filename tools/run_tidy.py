#!/usr/bin/env python3
"""Runs clang-tidy over compile_commands.json, or over the files named, two at a time.

Usage: run_tidy.py [--no-tests] [FILE.cc...]
Prints only findings; fails when there is one.
"""

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
import time

_PARALLEL = 2


def known_files():
    with open("compile_commands.json", encoding="utf-8") as commands:
        return [command["file"] for command in json.load(commands)]


def check(source):
    """Whether `source` is clean, and what clang-tidy said otherwise."""
    run = subprocess.run(["clang-tidy", "--quiet", "-p", ".", source],
                         capture_output=True, text=True, check=False)
    return source, run.returncode == 0, run.stdout


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("files", nargs="*")
    arguments = parser.parse_args()
    known = known_files()
    wanted = [os.path.relpath(name) for name in arguments.files]
    for source in wanted:
        if source not in known:
            print(f"tidy: {source}: in no Bazel target, not checked")
    sources = [source for source in known if not wanted or source in wanted]
    if arguments.no_tests:
        sources = [source for source in sources if not source.endswith("_test.cc")]
    start = time.monotonic()
    dirty = []
    with concurrent.futures.ThreadPoolExecutor(_PARALLEL) as pool:
        for source, clean, findings in pool.map(check, sources):
            if not clean:
                dirty.append(source)
                print(findings, flush=True)
    seconds = time.monotonic() - start
    print(f"tidy: {len(sources)} files, {len(dirty)} with findings, {seconds:.0f} s")
    for source in dirty:
        print(f"tidy: {source}")
    sys.exit(1 if dirty else 0)


if __name__ == "__main__":
    main()
