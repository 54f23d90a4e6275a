"""Outcomes of checks, printed as they come and counted at the end: `N passed, N failed, N skipped`."""

import json

OUTCOMES = ("passed", "failed", "skipped")


class Results:
    def __init__(self):
        self.checks = []  # (name, outcome, detail)

    def add(self, name, outcome, detail=""):
        assert outcome in OUTCOMES
        self.checks.append((name, outcome, detail))
        print(f"[{outcome}] {name}" + (f": {detail}" if detail else ""), flush=True)

    def check(self, name, ok, detail=""):
        self.add(name, "passed" if ok else "failed", detail)

    def count(self, outcome):
        return sum(found == outcome for _, found, _ in self.checks)

    def write(self, path):
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.checks, file)

    def extend_from(self, path):
        """Takes over what another process wrote and has already printed."""
        with open(path, encoding="utf-8") as file:
            self.checks += [tuple(check) for check in json.load(file)]

    def summary(self):
        return ", ".join(f"{self.count(outcome)} {outcome}" for outcome in OUTCOMES)
