#!/usr/bin/env python3
"""Counts test cases from a Bazel build event file: `N passed, N failed, N skipped`.

Usage: test_summary.py EVENTS.json BAZEL_EXIT_CODE

Counted are test cases, as each target's test.xml lists them. Beside those,
  - a target that could not be built, or failed without a failing case (a crash, a leak found at
    exit, a timeout), is one failure;
  - a target that this machine cannot build (a GPU target without CUDA) is one skip;
  - a failing Bazel with nothing of the above is one failure, so that a red run never reads green.
"""

import collections
import json
import sys
import urllib.parse
import xml.etree.ElementTree as ElementTree

Case = collections.namedtuple("Case", "name outcome detail")


class Run:
    """What one `bazel test` said about its test targets."""

    def __init__(self):
        self.tests = set()  # labels
        self.no_tsan = set()  # labels: ThreadSanitizer runs leave them out
        self.attempts = {}  # (label, run, shard) -> (attempt, testResult)
        self.unbuilt = set()  # labels
        self.incompatible = set()  # labels


def read_events(path):
    run = Run()
    with open(path, encoding="utf-8") as events:
        for line in events:
            note_event(run, json.loads(line))
    return run


def note_event(run, event):
    (kind, key), = event["id"].items()
    label = key.get("label") if isinstance(key, dict) else None
    if kind == "targetConfigured":
        rule = event.get("configured", {}).get("targetKind", "")
        if rule.endswith("_test rule"):
            run.tests.add(label)
            if "no_tsan" in event["configured"].get("tag", []):
                run.no_tsan.add(label)
    elif kind == "targetCompleted":
        if event.get("aborted", {}).get("reason") == "SKIPPED":
            run.incompatible.add(label)
        elif not event.get("completed", {}).get("success"):
            run.unbuilt.add(label)
    elif kind == "testResult":
        place = (label, key.get("run", 1), key.get("shard", 1))
        attempt = key.get("attempt", 1)
        if attempt >= run.attempts.get(place, (0, None))[0]:
            run.attempts[place] = (attempt, event["testResult"])


def case_outcome(case):
    for tag in ("failure", "error"):
        fault = case.find(tag)
        if fault is not None:
            return "failed", fault.get("message") or fault.text or ""
    skipped = case.find("skipped")
    if skipped is not None:
        return "skipped", skipped.get("message") or skipped.text or ""
    if case.get("status") == "notrun" or case.get("result") == "suppressed":
        return "skipped", "disabled"
    return "passed", ""


def read_cases(label, result):
    """The cases in a test.xml; none when it is absent or broken off."""
    uris = [f["uri"] for f in result.get("testActionOutput", []) if f["name"] == "test.xml"]
    cases = []
    for uri in uris:
        try:
            tree = ElementTree.parse(urllib.parse.unquote(urllib.parse.urlparse(uri).path))
        except (OSError, ElementTree.ParseError):
            continue
        for case in tree.iter("testcase"):
            outcome, detail = case_outcome(case)
            name = ".".join(filter(None, [case.get("classname"), case.get("name")]))
            cases.append(Case(f"{label} {name}", outcome, detail))
    return cases


def target_cases(label, result):
    cases = read_cases(label, result)
    status = result.get("status", "NO_STATUS")
    if status in ("PASSED", "FLAKY"):
        return cases or [Case(label, "passed", "")]
    if not any(case.outcome == "failed" for case in cases):
        cases.append(Case(label, "failed", f"the target ended with {status}"))
    return cases


def collect(run, bazel_exit_code):
    cases = []
    ran = set()
    for (label, _, _), (_, result) in sorted(run.attempts.items()):
        ran.add(label)
        cases += target_cases(label, result)
    for label in sorted(run.incompatible & run.tests):
        cases.append(Case(label, "skipped", "this machine cannot build it (no CUDA toolkit?)"))
    for label in sorted(run.unbuilt - ran):
        cases.append(Case(label, "failed", "could not be built"))
    missing = run.tests - ran - run.incompatible - run.unbuilt
    for label in sorted(missing & run.no_tsan):
        cases.append(Case(label, "skipped", "not for ThreadSanitizer"))
    for label in sorted(missing - run.no_tsan):
        cases.append(Case(label, "failed", "did not run"))
    if bazel_exit_code != 0 and not any(case.outcome == "failed" for case in cases):
        cases.append(Case("bazel", "failed", f"exit code {bazel_exit_code}"))
    return cases


def main():
    path, exit_code = sys.argv[1], int(sys.argv[2])
    try:
        run = read_events(path)
    except (OSError, ValueError) as error:
        print(f"test_summary: {path}: {error}", file=sys.stderr)
        run = Run()
    cases = collect(run, exit_code)
    for outcome in ("skipped", "failed"):
        for case in cases:
            if case.outcome == outcome:
                detail = " ".join(case.detail.split())[:160]
                print(f"{outcome}: {case.name}" + (f": {detail}" if detail else ""))
    count = collections.Counter(case.outcome for case in cases)
    print(f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped")


if __name__ == "__main__":
    main()
