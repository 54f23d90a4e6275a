"""unittest with the report that Bazel and tools/test_summary.py read: call run() as main."""

import os
import sys
import time
import unittest
import xml.etree.ElementTree as ElementTree


class _Report(unittest.TextTestResult):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.suite = ElementTree.Element("testsuite", name=os.path.basename(sys.argv[0]))
        self._start = time.monotonic()

    def startTest(self, test):
        super().startTest(test)
        self._start = time.monotonic()

    def _note(self, test, kind=None, text=""):
        group, _, name = test.id().rpartition(".")
        seconds = f"{time.monotonic() - self._start:.2f}"
        case = ElementTree.SubElement(
            self.suite, "testcase", classname=group, name=name, time=seconds
        )
        if kind:
            lines = text.strip().splitlines()
            ElementTree.SubElement(case, kind, message=lines[-1] if lines else "").text = text

    def addSuccess(self, test):
        super().addSuccess(test)
        self._note(test)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._note(test, "failure", self.failures[-1][1])

    def addError(self, test, err):
        super().addError(test, err)
        self._note(test, "error", self.errors[-1][1])

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self._note(test, "skipped", reason)


def run():
    runner = unittest.TextTestRunner(verbosity=2, resultclass=_Report)
    result = unittest.main(argv=sys.argv, testRunner=runner, exit=False).result
    if path := os.environ.get("XML_OUTPUT_FILE"):
        suites = ElementTree.Element("testsuites")
        suites.append(result.suite)
        ElementTree.ElementTree(suites).write(path, encoding="utf-8", xml_declaration=True)
    sys.exit(not result.wasSuccessful())
