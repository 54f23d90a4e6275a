"""A pod of rendered manifests, run by the rules of a kubelet: init containers one after the other,
then the containers, each with its exact command, arguments, environment, volumes and user; probes;
restarts; preStop, SIGTERM, and SIGKILL when the grace period is over.

What differs from a kubelet: only what the manifests use is there (anything else is an error),
and a container that ends is started again after 0.5 s, not 10 and more.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

from manifests import expand

HERE = os.path.dirname(os.path.abspath(__file__))
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TICK_SECONDS = 0.02
RESTART_SECONDS = 0.5


class Prober:
    """Makes probes from a host of its own: the node's."""

    def __init__(self, host, packages):
        command = ["/usr/bin/python3", os.path.join(HERE, "prober.py"), packages]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = host.start(command, **pipes)
        self._lock = threading.Lock()  # guards _waiting and writes
        self._waiting = {}
        self._ids = itertools.count()
        threading.Thread(target=self._read, daemon=True).start()

    def grpc(self, address, service, timeout):
        """A function that tells (ok, why) once there is an answer, None before."""
        answer = []
        with self._lock:
            number = next(self._ids)
            self._waiting[number] = answer
            question = {"id": number, "address": address, "service": service, "timeout": timeout}
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        return lambda: answer[0] if answer else None

    def _read(self):
        for line in self._process.stdout:
            told = json.loads(line)
            with self._lock:
                self._waiting.pop(told["id"]).append((told["ok"], told["why"]))


class Probe:
    """One of a container's three: `value` is None until thresholds say otherwise."""

    def __init__(self, spec, prober, address):
        self.spec = spec
        self.prober = prober
        self.address = address
        self.period = spec.get("periodSeconds", 10)
        self.next = time.monotonic() + spec.get("initialDelaySeconds", 0)
        self.run = {True: 0, False: 0}  # successes and failures in a row
        self.value = None
        self.why = ""
        self._pending = None

    def tick(self):
        if self._pending is not None:
            if (answer := self._pending()) is None:
                return
            self._pending = None
            ok, self.why = answer
            self.run[ok] += 1
            self.run[not ok] = 0
            threshold = "successThreshold" if ok else "failureThreshold"
            if self.run[ok] >= self.spec.get(threshold, 1 if ok else 3):
                self.value = ok
        elif time.monotonic() >= self.next:
            self.next = max(self.next + self.period, time.monotonic())
            grpc = self.spec["grpc"]  # the only kind in use
            self._pending = self.prober.grpc(
                f"{self.address}:{grpc['port']}",
                grpc.get("service", ""),
                self.spec.get("timeoutSeconds", 1),
            )


class Container:
    def __init__(self, pod, spec, init=False):
        self.pod, self.spec, self.init = pod, spec, init
        self.name = spec["name"]
        self.process = None
        self.restarts = -1
        self.start_at = 0.0
        self.started = self.ready = False
        self.last_code = None

    def start(self):
        self.process = self.pod.start_process(self.spec, self.command())
        self.restarts += 1
        self.started = self.ready = False
        self.pod.note(f"{self.name} runs")
        self.probes = {
            kind: Probe(self.spec[kind], self.pod.prober, self.pod.address)
            for kind in ("startupProbe", "livenessProbe", "readinessProbe")
            if kind in self.spec
        }

    def command(self):
        environment = self.pod.environment(self.spec)
        words = self.spec["command"] + self.spec.get("args", [])
        return [expand(word, environment) for word in words]

    def tick(self):
        now = time.monotonic()
        if self.process is None:
            if now >= self.start_at:
                self.start()
            return
        code = self.process.poll()
        if code is not None:
            self.ended(code)
        elif not self.init:
            self.tick_probes()

    def ended(self, code):
        self.last_code = code
        self.process = None
        self.started = self.ready = False
        self.start_at = time.monotonic() + RESTART_SECONDS
        self.pod.note(f"{self.name} ended with {code}")

    def tick_probes(self):
        startup = self.probes.get("startupProbe")
        if startup and not self.started:
            startup.tick()
            if startup.value is False:
                self.fail("startup", startup.why)
            if not startup.value:
                return
        if not self.started:
            self.started = True
            self.pod.note(f"{self.name} started")
            for kind, probe in self.probes.items():
                if kind != "startupProbe":
                    probe.next = time.monotonic()
        liveness, readiness = (self.probes.get(k) for k in ("livenessProbe", "readinessProbe"))
        if liveness:
            liveness.tick()
            if liveness.value is False:
                self.fail("liveness", liveness.why)
                return
        if readiness:
            readiness.tick()
        ready = readiness.value is True if readiness else True
        if ready != self.ready:
            self.ready = ready
            self.pod.note(f"{self.name} {'is ready' if ready else 'is not ready'}")

    def fail(self, kind, why):
        self.pod.note(f"{self.name} is killed: {kind} probe failed: {why}")
        seconds, killed = self.stop()
        self.pod.note(f"{self.name} took {seconds:.1f} s to stop{', killed' if killed else ''}")
        self.ended(self.process.returncode)

    def stop(self):
        """preStop, SIGTERM, SIGKILL at the end of the grace period. (seconds, whether killed)"""
        begin = time.monotonic()
        grace = self.pod.spec.get("terminationGracePeriodSeconds", 30)
        hook = self.spec.get("lifecycle", {}).get("preStop")
        try:
            if hook:
                running = self.pod.start_process(self.spec, hook["exec"]["command"])
                running.wait(grace)
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(grace - (time.monotonic() - begin))
            return time.monotonic() - begin, False
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return time.monotonic() - begin, True


class Pod:
    """Runs from start() until delete() has returned."""

    def __init__(self, cluster, name, template, restart="Always"):
        self.cluster, self.name, self.spec = cluster, name, template["spec"]
        self.labels = template["metadata"]["labels"]
        self.restart = self.spec.get("restartPolicy", restart)
        self.prober = cluster.prober
        self.host = cluster.network.host(name)
        self.address = self.host.address
        self.folder = os.path.join(cluster.folder, f"{name}.{self.address}")
        self.ready = self.terminating = False
        self.succeeded = False
        self.events = []  # (monotonic seconds, text)
        self.containers = [Container(self, spec) for spec in self.spec["containers"]]
        self._count = itertools.count()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self):
        os.makedirs(self.folder)
        self.mounts_of = {volume["name"]: self.make_volume(volume) for volume in self.spec["volumes"]}
        self._thread.start()

    def note(self, text):
        self.events.append((time.monotonic(), text))
        self.cluster.note(f"{self.name}: {text}")

    def when(self, text):
        """Seconds at which it was noted first."""
        return next(seconds for seconds, noted in self.events if noted == text)

    def _run(self):
        try:
            if not self._run_init():
                return
            while not self._stop.wait(TICK_SECONDS):
                for container in self.containers:
                    container.tick()
                if self.restart == "Never" and any(c.last_code for c in self.containers):
                    self.note("failed")
                    return
                if self.restart != "Always" and all(c.last_code == 0 for c in self.containers):
                    self.succeeded = True
                    self.note("succeeded")
                    return
                self.set_ready(all(container.ready for container in self.containers))
        except Exception as error:  # the test's own: shown where somebody waits for the pod
            self.note(f"the test failed: {error!r}")
            raise

    def _run_init(self):
        for spec in self.spec.get("initContainers", []):
            container = Container(self, spec, init=True)
            while container.last_code != 0:
                if self._stop.wait(TICK_SECONDS):
                    if container.process:
                        container.stop()
                    return False
                container.tick()
        return True

    def set_ready(self, ready):
        if ready != self.ready:
            self.ready = ready
            self.cluster.publish()

    def delete(self):
        """Returns when the pod is gone: (seconds of the longest container, whether one was killed,
        exit codes)."""
        self.terminating = True
        self.note("deleted")
        self.cluster.publish()
        self._stop.set()
        self._thread.join()
        ends = []
        running = [container for container in self.containers if container.process]
        threads = [
            threading.Thread(target=lambda c=c: ends.append((*c.stop(), c.process.returncode)))
            for c in running
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.set_ready(False)
        self.cluster.network.remove(self.host)
        self.note(f"gone: {ends}")
        shutil.rmtree(self.folder, ignore_errors=True)
        return (
            max((seconds for seconds, _, _ in ends), default=0.0),
            any(killed for _, killed, _ in ends),
            [code for _, _, code in ends],
        )

    def abandon(self):
        """Looks after it no longer; what runs is killed with its host."""
        self._stop.set()
        self._thread.join()

    # What its containers see.

    def make_volume(self, volume):
        """The folder that it is on this machine."""
        group = self.spec["securityContext"].get("fsGroup", 0)
        folder = os.path.join(self.folder, "volumes", volume["name"])
        if "persistentVolumeClaim" in volume:
            return self.cluster.claims[volume["persistentVolumeClaim"]["claimName"]]
        os.makedirs(folder)
        if "secret" in volume:
            secret = volume["secret"]
            data = self.cluster.secrets.get(secret["secretName"])
            if data is None and not secret.get("optional"):
                raise RuntimeError(f"no secret {secret['secretName']}")
            for name, text in (data or {}).items():
                path = os.path.join(folder, name)
                with open(path, "w", encoding="utf-8") as file:
                    file.write(text)
                os.chmod(path, secret.get("defaultMode", 0o644))
                give_to(path, group)
        elif "emptyDir" in volume:
            os.chmod(folder, 0o2777)
            give_to(folder, group)
        else:
            raise RuntimeError(f"a volume of a kind that this test does not know: {volume}")
        return folder

    def environment(self, spec):
        values = {"PATH": PATH, "HOSTNAME": self.name}
        for source in spec.get("envFrom", []):
            values.update(self.cluster.config_map(source["configMapRef"]["name"]))
        for variable in spec.get("env", []):
            if "valueFrom" in variable:
                path = variable["valueFrom"]["fieldRef"]["fieldPath"]
                value = {"status.podIP": self.address, "metadata.name": self.name}[path]
            else:
                value = expand(variable.get("value", ""), values)
            values[variable["name"]] = value
        return values

    def exec(self, *command):
        """As kubectl exec, in the first container: (exit code, stdout)."""
        process = self.start_process(self.spec["containers"][0], command, stdout=subprocess.PIPE)
        out, _ = process.communicate()
        return process.returncode, out.decode()

    def start_process(self, spec, command, stdout=None):
        context = {**self.spec["securityContext"], **spec["securityContext"]}
        number = next(self._count)
        root = os.path.join(self.folder, f"root-{number}")
        os.makedirs(root)
        described = {
            "root": root,
            "image": self.cluster.image,
            "mounts": [
                [self.mounts_of[m["name"]], m["mountPath"], m.get("readOnly", False)]
                for m in spec["volumeMounts"]
            ],
            "user": context["runAsUser"],
            "group": context["runAsGroup"],
            "groups": [context["fsGroup"]] if "fsGroup" in context else [],
            "read_only_root": context.get("readOnlyRootFilesystem", False),
            "drop_capabilities": context["capabilities"]["drop"] == ["ALL"],
            "no_new_privileges": not context["allowPrivilegeEscalation"],
            "command": command,
            "environment": {**self.environment(spec), **self.cluster.extra_environment},
        }
        path = os.path.join(self.folder, f"process-{number}.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(described, file)
        with open(self.cluster.log_of(self.name), "a", encoding="utf-8") as log:
            return self.host.start(
                ["/usr/bin/python3", os.path.join(HERE, "container.py"), path],
                stdin=subprocess.DEVNULL, stdout=stdout or log, stderr=log,
            )  # fmt: skip


def give_to(path, group):
    """As fsGroup does; where only one user is mapped there is no other group."""
    try:
        os.chown(path, -1, group)
    except OSError:
        print(f"{path}: no group {group} here", file=sys.stderr)
        os.chmod(path, os.stat(path).st_mode | 0o444)
