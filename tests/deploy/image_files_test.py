#!/usr/bin/env python3
"""The image's files, as far as they can be judged without making one (image_test.py does that)."""

import importlib.machinery
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "../network")]

import deploy_tools
import junit

STEPS = ("build", "stage", "install-runtime", "check")
WORKERS = os.path.abspath("deploy/image/conclave-workers")
# Stands for conclave-worker: writes what it was told and its process id to a file of its own, then
# does what the environment says for its GPU.
WORKER = """#!/bin/bash
gpu=one
for ((i = 1; i < $#; i++)); do
  [[ ${!i} == --cuda-device ]] && { i=$((i + 1)); gpu=${!i}; }
done
echo "$$ $*" >>"$LOGS/$gpu"
trap 'echo stopped >>"$LOGS/$gpu"; exit 0' TERM
code=DO_$gpu
[[ -n ${!code:-} ]] && exit "${!code}"
while :; do sleep 0.05; done
"""


def load(path):
    """A script as a module."""
    loader = importlib.machinery.SourceFileLoader("script", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("script", loader))
    loader.exec_module(module)
    return module


class DockerfilesTest(unittest.TestCase):
    def test_hadolint_finds_nothing(self):
        if deploy_tools.MISSING:
            self.skipTest(f"SKIPPED: {deploy_tools.MISSING}")
        files = [f"deploy/image/Dockerfile.{variant}" for variant in ("cpu", "cuda")]
        done = subprocess.run(
            [deploy_tools.HADOLINT, *files], capture_output=True, text=True, check=False
        )
        self.assertEqual((done.returncode, done.stdout + done.stderr), (0, ""))

    def test_dockerfiles_only_copy_and_call_scripts(self):
        for variant in ("cpu", "cuda"):
            with open(f"deploy/image/Dockerfile.{variant}", encoding="utf-8") as file:
                lines = [line.split() for line in file if line.startswith("RUN ")]
            commands = " ".join(" ".join(line[1:]) for line in lines)
            for command in commands.replace("&&", "\n").splitlines():
                for word in command.split():
                    if "/" in word and not word.startswith("/out"):
                        name = os.path.basename(word)
                        self.assertTrue(name in STEPS or word == "tools/setup", word)


class WorkersTest(unittest.TestCase):
    """deploy/image/conclave-workers."""

    def setUp(self):
        self.folder = self.enterContext(tempfile.TemporaryDirectory(dir=os.environ.get("TEST_TMPDIR")))
        program = os.path.join(self.folder, "conclave-worker")
        with open(program, "w", encoding="utf-8") as file:
            file.write(WORKER)
        os.chmod(program, 0o755)

    def start(self, count, **environment):
        path = f"{self.folder}:{os.environ['PATH']}"
        process = subprocess.Popen(
            [sys.executable, WORKERS, "--count", str(count), "--health-listen", "0.0.0.0:7101",
             "--", "--coordinator", "c:1"],
            env={**os.environ, "PATH": path, "LOGS": self.folder, **environment},
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def lines(self, gpu):
        try:
            with open(os.path.join(self.folder, str(gpu)), encoding="utf-8") as file:
                return file.read().splitlines()
        except FileNotFoundError:
            return []

    def wait_for(self, condition):
        end = time.monotonic() + 30
        while not condition():
            self.assertLess(time.monotonic(), end)
            time.sleep(0.01)

    def test_each_worker_has_a_gpu_and_a_health_port_and_all_hear_the_signal(self):
        process = self.start(3)
        self.wait_for(lambda: all(self.lines(gpu) for gpu in range(3)))
        for gpu in range(3):
            self.assertTrue(
                self.lines(gpu)[0].endswith(
                    f"--coordinator c:1 --health-listen 0.0.0.0:{7101 + gpu} --cuda-device {gpu}"
                )
            )
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(30), 0)
        self.assertEqual([self.lines(gpu)[1:] for gpu in range(3)], [["stopped"]] * 3)

    def test_a_worker_that_ends_is_started_again_and_the_others_go_on(self):
        process = self.start(2)
        self.wait_for(lambda: self.lines(0) and self.lines(1))
        os.kill(int(self.lines(0)[0].split()[0]), signal.SIGKILL)
        self.wait_for(lambda: len(self.lines(0)) == 2)
        self.assertEqual(len(self.lines(1)), 1)
        self.assertIn("worker 0 ended (SIGKILL)", process.stderr.readline())

    def test_a_worker_that_cannot_start_ends_the_pod_with_its_exit_code(self):
        process = self.start(2, DO_1="7")
        self.assertEqual(process.wait(60), 7)
        self.assertEqual(len(self.lines(1)), 5)
        self.assertEqual(self.lines(0)[1:], ["stopped"])

    def test_workers_end_with_a_launcher_that_is_killed(self):
        process = self.start(2)
        self.wait_for(lambda: self.lines(0) and self.lines(1))
        pid = int(self.lines(0)[0].split()[0])
        process.kill()
        self.wait_for(lambda: not os.path.exists(f"/proc/{pid}"))

    def test_a_health_check_is_passed_by_nothing_but_serving(self):
        launcher = load(WORKERS)
        begin = launcher._frame(launcher.SETTINGS, 0, 0, bytes(6))
        headers = launcher._frame(launcher.HEADERS, launcher.END_HEADERS, 1, b"\x88")

        def answer(status):
            return launcher._frame(launcher.DATA, 0, 1, b"\0\0\0\0\x02\x08" + bytes([status]))

        serving = begin + headers + answer(1)
        for end in range(len(serving)):
            self.assertIsNone(launcher.serving(serving[:end]))
        self.assertIs(launcher.serving(serving), True)
        self.assertIs(launcher.serving(begin + headers + answer(2)), False)
        trailers = launcher._frame(launcher.HEADERS, launcher.END_STREAM, 1, b"\x88")
        self.assertIs(launcher.serving(begin + trailers), False)
        self.assertIs(launcher.serving(begin + launcher._frame(launcher.GOAWAY, 0, 0, bytes(8))), False)

    def test_one_worker_takes_the_launchers_place(self):
        process = self.start(1)
        self.wait_for(lambda: self.lines("one"))
        self.assertEqual(
            self.lines("one"),
            [f"{process.pid} --coordinator c:1 --health-listen 0.0.0.0:7101"],
        )


if __name__ == "__main__":
    junit.run()
