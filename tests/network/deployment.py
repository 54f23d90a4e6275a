"""A service on hosts of its own: a coordinator, workers and a client, each on a host of a Network,
started by hand as on real machines. tests/network runs it on the CPU over Gloo, tests/gpu on GPUs
over NCCL's sockets."""

import json
import os
import secrets
import subprocess
import time

from hosts import Network

INTERNAL_PORT = 7001
PUBLIC_PORT = 50051
HEALTH_PORT = 7000
POLL_SECONDS = 0.05


def time_scale():
    """Sanitizers are slow: limits are stretched by it."""
    return float(os.environ.get("CONCLAVE_TEST_TIME_SCALE", "1"))


class Deployment:
    """with Deployment(...) as deployment: READY when the block is entered.

    programs: paths of conclave, conclave-coordinator and conclave-worker by these names.
    log: a folder. environment: of all programs. What else a program is given is up to
    coordinator_flags, worker_flags and environment_of, which a subclass may replace."""

    ready_seconds = 60

    def __init__(
        self, programs, model, log, dp=1, tp=1, exchange="auto", environment=None, names=True
    ):
        self.programs = programs
        self.model = model
        self.log = log
        self.shape = (dp, tp)
        self.exchange = exchange
        self.environment = environment or dict(os.environ)
        self.network = Network(names=names)
        try:
            self.coordinator_host = self.network.host("coordinator")
            self.client_host = self.network.host("client")
            self.worker_hosts = [self.network.host(f"worker-{i}") for i in range(dp * tp)]
        except BaseException:
            self.network.close()
            raise
        coordinator = self.coordinator_host.name if names else self.coordinator_host.address
        self.internal = f"{coordinator}:{INTERNAL_PORT}"
        self.address = f"{coordinator}:{PUBLIC_PORT}"
        self.workers = {}  # by index: the last process started there
        # What lets a worker join: the port is open to all hosts.
        self.secret = os.path.join(log, "internal_secret")
        os.makedirs(log, exist_ok=True)
        with open(self.secret, "w", encoding="utf-8") as file:
            file.write(secrets.token_hex(16) + "\n")

    def __enter__(self):
        try:
            self.start_coordinator()
            for index in range(len(self.worker_hosts)):
                self.start_worker(index)
            self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.network.close()

    def start_coordinator(self):
        dp, tp = self.shape
        command = ["--model", self.model, "--workers", str(dp * tp), "--dp", str(dp)]
        command += ["--tp", str(tp), "--exchange", self.exchange]
        for flag, port in (
            ("--listen", PUBLIC_PORT),
            ("--internal-listen", INTERNAL_PORT),
            ("--health-listen", HEALTH_PORT),
        ):
            command += [flag, f"{self.coordinator_host.address}:{port}"]
        command += ["--internal-secret", self.secret]
        command += self.coordinator_flags()
        self.coordinator = self._start(self.coordinator_host, "conclave-coordinator", command)

    def start_worker(self, index, interface=None, address=None):
        """Also after its process has ended. The host's own interface and address unless given."""
        host = self.worker_hosts[index]
        command = ["--coordinator", self.internal, *self.worker_flags(index)]
        command += ["--internal-secret", self.secret]
        command += ["--interface", interface or host.interface]
        command += ["--advertise-address", address or host.address]
        self.workers[index] = self._start(host, "conclave-worker", command)
        return self.workers[index]

    def _start(self, host, program, arguments):
        os.makedirs(self.log, exist_ok=True)
        with open(self.log_of(host), "a", encoding="utf-8") as log:
            command = [self.programs[program], *arguments]
            return host.start(command, env=self.environment_of(host), stdout=log, stderr=log)

    def coordinator_flags(self):
        return []

    def worker_flags(self, index):
        return ["--threads", "1"]

    def environment_of(self, host):
        return self.environment

    def log_of(self, host):
        return os.path.join(self.log, f"{host.name}.log")

    def read_log(self, host):
        with open(self.log_of(host), encoding="utf-8") as log:
            return log.read()

    # What the client does.

    def popen(self, *arguments, **options):
        """`conclave ARGUMENTS` on the client's host."""
        command = [self.programs["conclave"], *arguments, "--server", self.address]
        return self.client_host.start(command, env=self.environment, **options)

    def run(self, *arguments):
        """Exit code, last line of stdout as JSON (None without one), stderr."""
        process = self.popen(
            *arguments, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        out, errors = process.communicate(timeout=300)
        lines = out.strip().splitlines()
        return process.returncode, json.loads(lines[-1]) if lines else None, errors

    def ask(self, *arguments):
        code, answer, errors = self.run(*arguments)
        if code != 0:
            raise RuntimeError(f"{' '.join(arguments)}: {errors}")
        return answer

    def wait_for(self, condition, seconds, what):
        """Until condition(status) holds; returns that status."""
        end = time.monotonic() + seconds * time_scale()
        status = None
        while time.monotonic() < end:
            code, status, _ = self.run("status")
            if code == 0 and condition(status):
                return status
            time.sleep(POLL_SECONDS)
        raise RuntimeError(f"not {what} after {seconds} s; the last status: {status}")

    def wait_ready(self, after_epoch=0):
        def ready(status):
            return status["state"] == "READY" and status["epoch"] > after_epoch

        return self.wait_for(ready, self.ready_seconds, "ready")


def seconds_until_failed(deployment, harm, max_tokens, streams=4):
    """Streams run, `harm` is done. How long until the last has ended, and (exit code, text,
    error) of each."""
    arguments = ["generate", "--tokens", "1,2,3", "--temperature", "0", "--ignore-eos"]
    arguments += ["--max-tokens", str(max_tokens)]
    # Bytes without a buffer: communicate() would not see what read(1) had taken into one.
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0}
    running = [deployment.popen(*arguments, **pipes) for _ in range(streams)]
    begun = [stream.stdout.read(1) for stream in running]  # the first text is there
    start = time.monotonic()
    harm()
    ended = []
    try:
        for first, stream in zip(begun, running):
            text, error = stream.communicate(timeout=60 * time_scale())
            whole = (first + text).decode("utf-8", "replace")
            ended.append((stream.returncode, whole, error.decode("utf-8", "replace")))
    finally:
        for stream in running:
            stream.kill()
    return time.monotonic() - start, ended
