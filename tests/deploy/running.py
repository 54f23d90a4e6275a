"""What tests that run manifests have in common: programs staged as in an image, a Cluster, users."""

import concurrent.futures
import json
import os
import subprocess
import tempfile
import threading
import time
import unittest

import deploy_tools
from cluster import Cluster
from hosts import NotPermitted, check_permitted
from manifests import render

SECRETS = {"conclave-internal": {"secret": "0f" * 32 + "\n"}}
COORDINATOR = ("Deployment", "conclave-coordinator")
WORKERS = ("StatefulSet", "conclave-worker")


def check_possible():
    """Raises SkipTest where the tests cannot run."""
    if deploy_tools.MISSING:
        raise unittest.SkipTest(f"SKIPPED: {deploy_tools.MISSING}")
    try:
        check_permitted()
    except NotPermitted as why:
        raise unittest.SkipTest(f"SKIPPED: hosts of network namespaces are not to be had: {why}")


def scratch():
    folder = tempfile.mkdtemp(prefix="deploy.", dir=os.environ.get("TEST_TMPDIR"))
    os.chmod(folder, 0o755)
    return folder


def stage():
    """What the image has on top of Debian."""
    programs, image = scratch(), scratch()
    for path in ("client/conclave", "coordinator/conclave-coordinator", "worker/conclave-worker"):
        os.symlink(os.path.abspath(path), os.path.join(programs, os.path.basename(path)))
    subprocess.run(["deploy/image/stage", "cpu", programs, image], check=True)
    return image


class Streams:
    """Users who ask again as soon as they have an answer, until told to stop."""

    def __init__(self, test, users, tokens):
        self.test, self.tokens = test, tokens
        self.ended = []  # (when it began, when it ended, exit code, answer, error)
        self._stopping = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(users)
        self._users = [self._pool.submit(self._use) for _ in range(users)]

    def _use(self):
        while not self._stopping.is_set():
            begin = time.monotonic()
            code, answer, error = self.test.ask(
                "generate", "--prompt", "one two three", "--max-tokens", str(self.tokens),
                "--ignore-eos", "--timeout", "60",
            )  # fmt: skip
            self.ended.append((begin, time.monotonic(), code, answer, error))
            if code != 0:
                time.sleep(0.2)  # as a user waits before the next try

    def stop(self):
        self._stopping.set()
        for user in self._users:
            user.result()
        return self.ended

    def wait_for(self, count):
        """Until so many more have ended well."""
        wanted = self.good() + count
        self.test.cluster.wait(lambda: self.good() >= wanted, 60, f"{count} more answers")

    def good(self):
        return sum(code == 0 for _, _, code, _, _ in self.ended)


class RunTest(unittest.TestCase):
    """A cluster for all tests of a class, which go by their order."""

    overlay = ""
    claims = None
    secrets = SECRETS
    client_flags = ()

    @classmethod
    def manifests(cls):
        return render(cls.overlay)

    @classmethod
    def setUpClass(cls):
        cls.image = stage()
        cls.cluster = cls.enterClassContext(
            Cluster(cls.manifests(), scratch(), cls.image, claims=cls.claims, secrets=cls.secrets)
        )
        cls.pods = [f"{WORKERS[1]}-{i}" for i in range(cls.cluster.owner(*WORKERS)["replicas"])]

    @classmethod
    def tearDownClass(cls):
        for name, grace, seconds, killed, _ in cls.cluster.ends:
            if killed or seconds >= grace:
                raise AssertionError(f"{name} took {seconds} of {grace} s to stop")

    def ask(self, *arguments, flags=None):
        """Exit code, answer, error of `conclave ARGUMENTS` by a client of the service."""
        process = self.popen(*arguments, "--json", flags=flags)
        out, error = process.communicate(timeout=120)
        self.cluster.client.processes.remove(process)
        return process.returncode, json.loads(out) if out.strip() else None, error.strip()

    def popen(self, *arguments, flags=None, text=True, **options):
        """Host.run would hold the host's only thread until the program ends."""
        flags = self.client_flags if flags is None else flags
        program = f"{self.image}/usr/local/bin/conclave"
        return self.cluster.client.start(
            [program, *arguments, "--server", "conclave:50051", *flags],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=text, **options,
        )  # fmt: skip

    def expect_answers(self):
        code, answer, error = self.ask("generate", "--prompt", "Hello", "--max-tokens", "8")
        self.assertEqual(code, 0, error)
        self.assertIn(answer["finish_reason"], ("stop", "length"))

    def expect_well_ended(self, streams):
        """None was dropped silently."""
        for _, _, code, answer, error in streams:
            if code == 0:
                self.assertIn(answer["finish_reason"], ("stop", "length"))
            else:
                self.assertIn("UNAVAILABLE", error)

    def status(self):
        code, status, error = self.ask("status")
        self.assertEqual(code, 0, error)
        return status

    def all_ready(self):
        self.cluster.wait_ready(*self.pods, f"{COORDINATOR[1]}-0")

    def coordinator(self):
        return self.cluster.pods[f"{COORDINATOR[1]}-0"]

    def wait_recovered(self, epoch):
        """Until a group later than that of `epoch` serves."""

        def recovered():
            code, status, _ = self.ask("status")
            return code == 0 and status["state"] == "READY" and status["epoch"] > epoch

        self.cluster.wait(recovered, 60, "recovered")
