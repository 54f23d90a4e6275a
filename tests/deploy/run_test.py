#!/usr/bin/env python3
"""The rendered manifests, run: pods as processes on hosts of network namespaces (cluster.py)."""

import json
import os
import signal
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "../network")]

import junit
import running
from hosts import become_root
from manifests import render_on
from running import COORDINATOR, WORKERS, Streams, scratch

MODEL = "demo/small_gpt_oss"


def setUpModule():
    running.check_possible()


class CpuDemoTest(running.RunTest):
    """cpu-demo as it is: a coordinator and four workers."""

    overlay = "deploy/overlays/cpu-demo"

    def test_1_probes_go_green_in_order_and_a_client_reaches_the_service(self):
        cluster = self.cluster
        cluster.scale(*COORDINATOR)
        coordinator = self.coordinator()
        cluster.wait(lambda: coordinator.containers[0].started, 60, "started without workers")
        self.assertFalse(coordinator.ready, "ready without workers")
        code, _, error = self.ask("generate", "--prompt", "Hello", "--timeout", "5")
        self.assertEqual(code, 1)
        self.assertIn("UNAVAILABLE", error)
        cluster.scale(*WORKERS)
        self.all_ready()
        self.expect_answers()
        status = self.status()
        self.assertEqual(status["state"], "READY")
        self.assertEqual(sorted(rank["host"] for rank in status["ranks"]), self.pods)
        ready = coordinator.when("coordinator is ready")
        self.assertLess(coordinator.when("coordinator started"), ready)
        for pod in map(cluster.pods.get, self.pods):
            self.assertLess(pod.when("worker runs"), pod.when("worker started"))
            self.assertLessEqual(pod.when("worker started"), pod.when("worker is ready"))
            self.assertEqual(pod.containers[0].restarts, 0)
        self.assertEqual(coordinator.containers[0].restarts, 0)

    def test_2_a_deleted_worker_comes_back_with_another_address_and_the_service_recovers(self):
        epoch = self.status()["epoch"]
        victim = self.pods[2]
        before = self.cluster.pods[victim].address
        streams = Streams(self, 2, 64)
        streams.wait_for(2)
        self.cluster.replace(*WORKERS, victim)
        self.assertNotEqual(self.cluster.pods[victim].address, before)
        self.wait_recovered(epoch)
        streams.wait_for(2)
        self.expect_well_ended(streams.stop())

    def test_3_a_killed_worker_is_started_again_in_its_pod(self):
        pod = self.cluster.pods[self.pods[1]]
        epoch = self.status()["epoch"]
        pod.containers[0].process.kill()
        self.cluster.wait(lambda: pod.containers[0].restarts == 1, 30, "started again")
        self.wait_recovered(epoch)
        self.expect_answers()

    def test_4_a_deleted_coordinator_comes_back_and_workers_find_it_by_its_name(self):
        addresses = [self.cluster.pods[pod].address for pod in self.pods]
        before = self.coordinator().address
        self.cluster.replace(*COORDINATOR, f"{COORDINATOR[1]}-0")
        self.assertNotEqual(self.coordinator().address, before)
        # Before gRPC would look a name up again by itself (30 s).
        self.cluster.wait_ready(*self.pods, f"{COORDINATOR[1]}-0", seconds=15)
        self.expect_answers()
        self.assertEqual([self.cluster.pods[pod].address for pod in self.pods], addresses)

    def test_5_pods_stop_inside_their_grace_period(self):
        self.cluster.scale(*WORKERS, 0)
        self.cluster.scale(*COORDINATOR, 0)
        for _, _, _, _, codes in self.cluster.ends[-5:]:
            self.assertEqual(codes, [0])


class TwoPodsTest(running.RunTest):
    """multi-node-statefulset, with CPUs for GPUs: the download, then a coordinator and two pods of
    two workers each."""

    overlay = "tests/deploy/overlays/two-pods"

    @classmethod
    def setUpClass(cls):
        claim = scratch()
        os.chmod(claim, 0o777)
        cls.claims = {"model-cache": claim}
        super().setUpClass()

    def test_1_workers_may_come_first_and_all_wait_for_the_download(self):
        cluster = self.cluster
        cluster.scale(*WORKERS)
        for pod in self.pods:
            cluster.wait(lambda pod=pod: "waiting for" in self.log(pod), 30, "waiting")
        hub = cluster.network.host("hub")
        command = ["/usr/bin/python3", os.path.join(HERE, "hub.py"), hub.address, "8080"]
        hub.start([*command, os.path.abspath(MODEL)])
        cluster.scale("Job", "conclave-fetch")
        fetch = cluster.pods["conclave-fetch-0"]
        cluster.wait(lambda: fetch.succeeded, 60, "downloaded")
        # Alive, and so started, though there is nobody to join.
        cluster.wait_ready(*self.pods)
        cluster.scale(*COORDINATOR)
        self.all_ready()
        self.expect_answers()
        status = self.status()
        self.assertEqual((status["dp"], status["tp"]), (2, 2))
        hosts = [rank["host"] for rank in status["ranks"]]
        self.assertEqual(sorted(hosts), sorted(self.pods * 2))

    def log(self, name):
        path = self.cluster.log_of(name)
        return read(path) if os.path.exists(path) else ""

    def test_2_a_worker_that_dies_is_started_again_and_the_other_of_its_pod_stays(self):
        pod = self.cluster.pods[self.pods[0]]
        status = self.status()
        pids = {rank["pid"] for rank in status["ranks"]}
        os.kill(min(pids), 9)
        self.cluster.wait(lambda: "ended (SIGKILL)" in self.log(self.pods[0]) + self.log(self.pods[1]),
                          30, "noticed")  # fmt: skip
        self.wait_recovered(status["epoch"])
        after = {rank["pid"] for rank in self.status()["ranks"]}
        self.assertEqual(len(pids & after), 3)
        self.assertEqual(pod.containers[0].restarts, 0)

    def test_3_a_worker_that_hangs_is_killed_and_the_others_stay(self):
        """The second of its pod, which no kubelet asks."""
        status = self.status()
        pids = {rank["pid"] for rank in status["ranks"]}
        hung = max(pid for pid in pids if "0.0.0.0:7102" in read(f"/proc/{pid}/cmdline"))
        os.kill(hung, signal.SIGSTOP)
        self.wait_recovered(status["epoch"])
        after = {rank["pid"] for rank in self.status()["ranks"]}
        self.assertEqual(pids - after, {hung})
        self.assertFalse(os.path.exists(f"/proc/{hung}"), "it is still there")
        self.assertIn("worker 1 has not answered", self.log(self.pods[0]) + self.log(self.pods[1]))
        self.assertEqual([self.cluster.pods[pod].containers[0].restarts for pod in self.pods], [0, 0])

    def test_4_an_upgrade_ends_no_stream_silently(self):
        """The commands of docs/deploy.md, Upgrades: no worker of old is left for the coordinator
        that comes."""
        before = {rank["pid"] for rank in self.status()["ranks"]}
        users = Streams(self, 2, 64)
        tokens = self.tokens_for(10)  # longer than the 5 s until SIGTERM, shorter than the drain
        long = [self.begin_long(tokens) for _ in range(2)]
        deleted = time.monotonic()
        drain, *others = upgrade_commands()
        self.cluster.kubectl(drain)
        gone = time.monotonic()
        for command in others:
            self.cluster.kubectl(command)
        self.all_ready()
        after = {rank["pid"] for rank in self.status()["ranks"]}
        self.assertFalse(before & after, "workers of old")
        users.wait_for(4)
        ended = users.stop()
        self.expect_well_ended(ended)
        # Who was being answered had the whole answer, though it took longer than the notice.
        for process in long:
            _, error = process.communicate()
            self.assertEqual(process.returncode, 0, error)
            self.assertIn(f"+ {tokens} generated tokens", error.decode())
        self.assertGreater(gone - deleted, 5.5, "nothing was left to drain")
        # Who came meanwhile was told.
        told = [error for begin, _, code, _, error in ended if code != 0 and deleted < begin < gone]
        self.assertGreater(len(told), 0)

    def begin_long(self, tokens):
        """A stream whose first text is there."""
        process = self.popen(
            "generate", "--prompt", "one two three", "--max-tokens", str(tokens), "--ignore-eos",
            text=False, bufsize=0,
        )  # fmt: skip
        self.assertTrue(process.stdout.read(1))
        return process

    def tokens_for(self, seconds):
        """That a stream has in this time, beside another and the users."""
        measured = 100
        begin = time.monotonic()
        for process in [self.begin_long(measured) for _ in range(2)]:
            process.communicate()
        return max(measured, min(3500, int(measured * seconds / (time.monotonic() - begin))))

    def test_5_workers_replaced_one_by_one_under_load_end_no_stream_silently(self):
        streams = Streams(self, 4, 64)
        streams.wait_for(2)
        for pod in self.pods:
            epoch = self.status()["epoch"]
            self.cluster.replace(*WORKERS, pod)
            self.wait_recovered(epoch)
            streams.wait_for(2)
        self.expect_well_ended(streams.stop())

    def test_6_all_pods_at_once_stop_inside_their_grace_period(self):
        self.cluster.delete(*self.pods, f"{COORDINATOR[1]}-0")


class TlsTest(running.RunTest):
    """tls, on cpu-demo."""

    @classmethod
    def manifests(cls):
        return render_on("tls", "cpu-demo")

    @classmethod
    def setUpClass(cls):
        folder = scratch()
        cls.ca, key, cls.key_file = (os.path.join(folder, n) for n in ("tls.crt", "tls.key", "api-key"))
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-days", "2", "-subj", "/CN=conclave", "-addext", "subjectAltName=DNS:conclave",
             "-keyout", key, "-out", cls.ca],
            check=True, capture_output=True,
        )  # fmt: skip
        token = "0123456789abcdef" * 3
        with open(cls.key_file, "w", encoding="utf-8") as file:
            file.write(token + "\n")
        cls.secrets = dict(running.SECRETS)
        cls.secrets["conclave-tls"] = {"tls.crt": read(cls.ca), "tls.key": read(key)}
        cls.secrets["conclave-api-keys"] = {"api-keys": f"tests {token}\n"}
        cls.client_flags = ("--tls-ca", cls.ca, "--api-key-file", cls.key_file)
        super().setUpClass()

    def test_1_only_who_has_a_key_and_speaks_tls_is_served(self):
        self.cluster.scale(*COORDINATOR)
        self.cluster.scale(*WORKERS)
        self.all_ready()
        self.expect_answers()
        for flags, code in (
            (("--tls-ca", self.ca), "UNAUTHENTICATED"),
            (("--api-key-file", self.key_file, "--tls"), "UNAVAILABLE"),  # of no known authority
            ((), "UNAVAILABLE"),
        ):
            with self.subTest(flags=flags):
                exit_code, _, error = self.ask("status", "--timeout", "5", flags=flags)
                self.assertEqual(exit_code, 1)
                self.assertIn(code, error)

    def test_2_inside_of_the_pod_neither_is_needed(self):
        code, out = self.coordinator().exec(
            "conclave", "status", "--server", "unix:/tmp/control", "--json"
        )
        self.assertEqual(code, 0)
        self.assertEqual(json.loads(out)["state"], "READY")


def upgrade_commands():
    """Of the first block of docs/deploy.md, Upgrades."""
    _, _, section = read("docs/deploy.md").partition("\n## Upgrades\n")
    before, _, rest = section.partition("\n    ")
    block = rest.partition("\n\n")[0]
    return [line.partition("#")[0].strip() for line in block.splitlines()]


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


if __name__ == "__main__":
    become_root([sys.executable, *sys.argv])
    junit.run()
