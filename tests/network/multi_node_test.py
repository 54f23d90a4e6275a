#!/usr/bin/env python3
"""Guarantees 2, 4 and 6 across hosts: workers that are started by hand, each on a host with an
address of its own, give the tokens of one worker; a worker that is killed, and a host whose cable
is pulled, end every stream and come back; wrong addresses are told, and by when."""

import json
import os
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import junit
from deployment import Deployment, seconds_until_failed, time_scale
from hosts import Network, NotPermitted, become_root, check_permitted

PROGRAMS = {
    "conclave": "client/conclave",
    "conclave-coordinator": "coordinator/conclave-coordinator",
    "conclave-worker": "worker/conclave-worker",
}
MODEL = "demo/tiny_gpt_oss"
NEW_TOKENS = 24
LONG = 220  # tokens of a stream that something happens to
KILLED_SECONDS = 2
CUT_SECONDS = 10  # no packet comes any more: silence has to be noticed
RETURN_SECONDS = 30
REFUSED_SECONDS = 2  # before anything is joined
CONNECT_SECONDS = 30  # for all ranks to be connected


def setUpModule():
    try:
        check_permitted()
    except NotPermitted as why:
        raise unittest.SkipTest(f"SKIPPED: hosts of network namespaces are not to be had: {why}")


def deploy(**options):
    folder = tempfile.mkdtemp(prefix="multi_node.", dir=os.environ.get("TEST_TMPDIR"))
    programs = {name: os.path.abspath(path) for name, path in PROGRAMS.items()}
    return Deployment(programs, os.path.abspath(MODEL), folder, **options)


def generate(deployment, prompt):
    ids = ",".join(map(str, prompt))
    return deployment.ask(
        "generate", "--tokens", ids, "--max-tokens", str(NEW_TOKENS), "--ignore-eos",
        "--temperature", "0",
    )["tokens"]  # fmt: skip


def goldens():
    """(prompt, Transformers' greedy tokens). One case's tokens are arg-max in their first step
    only: see tests/goldens/goldens.h."""
    with open("tests/goldens/goldens.json", encoding="utf-8") as file:
        cases = json.load(file)["cases"]
    return [(c["prompt"], c["greedy"][: 1 if len(c["prompt"]) == 100 else None]) for c in cases]


def ragged_prompts():
    return [[(37 * i + 11 * j) % 490 for j in range(1 + 23 * i)] for i in range(6)]


class HostsTest(unittest.TestCase):
    def test_a_killed_program_leaves_no_process_on_its_hosts(self):
        program = (
            "import sys; sys.path.insert(0, sys.argv[1])\n"
            "from hosts import Network\n"
            "with Network() as network:\n"
            "    print(network.host('a').start(['sleep', '1000']).pid, flush=True)\n"
            "    sys.stdin.read()\n"
        )
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen([sys.executable, "-c", program, HERE], **pipes) as outer:
            pid = int(outer.stdout.readline())
            os.kill(pid, 0)  # it runs
            outer.kill()
        end = time.monotonic() + 10 * time_scale()
        while is_running(pid):
            self.assertLess(time.monotonic(), end, "it still runs")
            time.sleep(0.01)

    def test_an_unplugged_host_is_not_reached_until_it_is_plugged_in(self):
        with Network() as network:
            server, client = network.host("server"), network.host("client")
            probe = [sys.executable, "-c", CONNECT, server.name, "80"]
            listening = server.call(make_listener, server.address, 80)
            self.assertEqual(client.run(probe).returncode, 0)
            server.unplug()
            self.assertNotEqual(client.run(probe, stderr=subprocess.DEVNULL).returncode, 0)
            server.plug_in()
            self.assertEqual(client.run(probe).returncode, 0)
            listening.close()


CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], sys.argv[2]), timeout=1)"


def make_listener(address, port):
    import socket

    return socket.create_server((address, port))


def is_running(pid):
    """Not gone, and not a zombie that nobody has asked for yet."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class MultiNodeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.prompts = [prompt for prompt, _ in goldens()] + ragged_prompts()
        with deploy() as one:
            cls.want = [generate(one, prompt) for prompt in cls.prompts]
            _, [(_, cls.text, _)] = seconds_until_failed(one, lambda: None, LONG, streams=1)
        cls.group = cls.enterClassContext(deploy(dp=2, tp=2))

    def setUp(self):
        for index, process in self.group.workers.items():
            if process.poll() is not None:  # another test failed
                self.group.start_worker(index)

    def expect_same_tokens(self):
        for prompt, want in zip(self.prompts, self.want):
            self.assertEqual(generate(self.group, prompt), want, f"prompt of {len(prompt)}")

    def expect_streams_end(self, harm, limit):
        seconds, streams = seconds_until_failed(self.group, harm, LONG)
        self.assertLess(seconds, limit * time_scale())
        for code, text, error in streams:
            self.assertEqual(code, 1)
            self.assertIn("UNAVAILABLE", error)
            sent = text.removesuffix("\n")  # the command ends the line
            self.assertTrue(self.text.startswith(sent), f"{sent!r} is no prefix of {self.text!r}")

    def expect_return(self, epoch):
        self.group.ready_seconds = RETURN_SECONDS
        self.group.wait_ready(after_epoch=epoch)
        self.expect_same_tokens()

    def epoch(self):
        return self.group.wait_ready()["epoch"]

    def test_four_workers_on_four_hosts_give_the_tokens_of_one(self):
        for (prompt, golden), want in zip(goldens(), self.want):
            self.assertEqual(want[: len(golden)], golden, f"prompt of {len(prompt)}")
        self.expect_same_tokens()
        status = self.group.wait_ready()
        self.assertEqual((status["dp"], status["tp"]), (2, 2))
        hosts = sorted(rank["host"] for rank in status["ranks"])
        self.assertEqual(hosts, [host.name for host in self.group.worker_hosts])
        # The ranks of all hosts took part: they were sent copies, and sent bytes.
        self.assertTrue(all(rank["exchange_bytes"] > 0 for rank in status["ranks"]), status)

    def test_a_killed_worker_ends_all_streams_and_its_successor_joins(self):
        epoch = self.epoch()
        victim = self.group.workers[3]
        self.expect_streams_end(victim.kill, KILLED_SECONDS)
        victim.wait()
        self.group.start_worker(3)
        self.expect_return(epoch)

    def test_a_pulled_cable_ends_all_streams_and_the_worker_joins_once_it_is_back(self):
        epoch = self.epoch()
        host = self.group.worker_hosts[1]
        self.expect_streams_end(host.unplug, CUT_SECONDS)
        host.plug_in()
        self.expect_return(epoch)
        self.assertIsNone(self.group.workers[1].poll(), "the process was not needed anew")

    def test_an_interface_or_address_that_is_not_the_hosts_is_refused_at_once(self):
        host = self.group.worker_hosts[2]
        serving = self.group.workers[2]
        for options, wanted in (
            ({"interface": "nosuch0"}, "'nosuch0' has no address; this machine has lo 127.0.0.1"),
            ({"address": "10.77.0.99"}, "'10.77.0.99' is none of this machine's"),
            ({"interface": "lo"}, f"'{host.address}' is none of this machine's (lo 127.0.0.1"),
        ):
            with self.subTest(**options):
                before = len(self.group.read_log(host))
                start = time.monotonic()
                process = self.group.start_worker(2, **options)
                self.assertEqual(process.wait(60), 1)
                self.assertLess(time.monotonic() - start, REFUSED_SECONDS * time_scale())
                said = self.group.read_log(host)[before:]
                self.assertIn(wanted, said)
                self.assertEqual(len(said.splitlines()), 1, said)
        self.group.workers[2] = serving

    def test_an_address_that_no_peer_reaches_is_named_within_the_time_for_connecting(self):
        epoch = self.epoch()
        host = self.group.worker_hosts[0]
        self.group.workers[0].kill()
        self.group.workers[0].wait()
        host.add_blind_interface("blind0", "10.66.0.1")
        blind = self.group.start_worker(0, interface="blind0", address="10.66.0.1")
        status = self.group.wait_for(
            lambda status: "10.66.0.1" in status["problem"], CONNECT_SECONDS, "told"
        )
        self.assertIn("could not connect", status["problem"])
        blind.kill()
        blind.wait()
        self.group.start_worker(0)
        self.expect_return(epoch)


if __name__ == "__main__":
    become_root([sys.executable, *sys.argv])
    junit.run()
