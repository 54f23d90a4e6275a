"""Runs rendered manifests on hosts of network namespaces: a host for each pod (pods.py) and for
each service that has an address; names of services and pods resolve as in a cluster. Deployments
(Recreate), StatefulSets (Parallel, OnDelete) and Jobs are there. Network policies are not enforced:
manifests_test.py reasons about them."""

import glob
import json
import os
import subprocess
import threading
import time

import deploy_tools
from hosts import Network
from manifests import named, of_kind, selects
from pods import Pod, Prober

HERE = os.path.dirname(os.path.abspath(__file__))


class Service:
    """One with an address."""

    def __init__(self, cluster, document):
        self.ports = document["spec"]["ports"]
        self.host = cluster.network.host(document["metadata"]["name"])
        numbers = [str(port["port"]) for port in self.ports]
        command = ["/usr/bin/python3", os.path.join(HERE, "service_proxy.py"), self.host.address]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = self.host.start([*command, *numbers], **pipes)

    def publish(self, pods):
        endpoints = {
            str(port["port"]): [[pod.address, target_port(pod, port)] for pod in pods]
            for port in self.ports
        }
        self._process.stdin.write(json.dumps(endpoints) + "\n")
        self._process.stdin.flush()
        self._process.stdout.readline()


def target_port(pod, port):
    (found,) = [
        p["containerPort"]
        for container in pod.spec["containers"]
        for p in container["ports"]
        if p["name"] == port["targetPort"]
    ]
    return found


class Cluster:
    """claims: folders by the names of claims. secrets: {name: {file: text}}. image: what
    deploy/image/stage made. extra_environment: of all containers, on top of the manifests'."""

    def __init__(self, documents, folder, image, claims=None, secrets=None, environment=None):
        self.documents = documents
        self.folder, self.image = folder, image
        self.claims, self.secrets = claims or {}, secrets or {}
        self.extra_environment = environment or {}
        self.pods = {}  # by name
        self.ends = []  # (name, grace, seconds, killed, codes) of every pod that was deleted
        self._begin = time.monotonic()
        self._lock = threading.RLock()  # guards pods and what is published
        self._log = open(os.path.join(folder, "events.log"), "a", encoding="utf-8")
        self.network = Network()
        (packages,) = glob.glob(f"{deploy_tools.FOLDER}/venv/lib/python3*/site-packages")
        self.prober = Prober(self.network.host("node"), packages)
        self.client = self.network.host("client")
        self.services = {}
        for document in of_kind(documents, "Service"):
            if document["spec"].get("clusterIP") != "None":
                self.services[document["metadata"]["name"]] = Service(self, document)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pod in self.pods.values():
            pod.abandon()
        self.network.close()
        self._log.close()

    def note(self, text):
        print(f"{time.monotonic() - self._begin:8.2f} {text}", file=self._log, flush=True)

    def log_of(self, name):
        return os.path.join(self.folder, f"{name}.log")

    def config_map(self, name):
        return named(self.documents, "ConfigMap", name)["data"]

    def owner(self, kind, name):
        return named(self.documents, kind, name)["spec"]

    # What controllers do.

    def scale(self, kind, name, replicas=None):
        """Makes the pods of a Deployment, StatefulSet or Job, or deletes those beyond `replicas`
        and returns when they are gone."""
        spec = self.owner(kind, name)
        if replicas is None:
            replicas = spec.get("replicas", 1)
        wanted = [f"{name}-{index}" for index in range(replicas)]
        have = [pod for pod in self.pods if pod.startswith(f"{name}-")]
        self.delete(*[pod for pod in have if pod not in wanted])
        for pod in wanted:
            if pod not in self.pods:
                self._make(pod, spec["template"])

    def delete(self, *names):
        """All at the same time; returns when they are gone."""
        pods = [self.pods[name] for name in names]
        threads = [threading.Thread(target=self._delete, args=[pod]) for pod in pods]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def replace(self, kind, name, *pods):
        """kubectl delete pod: the controller makes others of the same names, with new addresses."""
        self.delete(*pods)
        self.scale(kind, name)

    def kubectl(self, command):
        """Of docs/deploy.md; another than these is an error."""
        match command.split():
            case ["kubectl", "-n", "conclave", "scale", target, replicas]:
                kind, _, name = target.partition("/")
                kind = {"deployment": "Deployment", "statefulset": "StatefulSet"}[kind]
                self.scale(kind, name, int(replicas.removeprefix("--replicas=")))
            case ["kubectl", "-n", "conclave", "wait", "--for=delete", "pod", "-l", label, _]:
                key, _, value = label.partition("=")
                left = [pod.name for pod in self.pods.values() if pod.labels[key] == value]
                assert not left, left  # scale has waited
            case ["kubectl", "-n", "conclave", "delete", "job", name, "--ignore-not-found"]:
                self.scale("Job", name, 0)
            case ["kubectl", "apply", "-k", _]:
                for kind in ("Deployment", "StatefulSet", "Job"):
                    for document in of_kind(self.documents, kind):
                        self.scale(kind, document["metadata"]["name"])
            case _:
                raise AssertionError(f"not known here: {command}")

    def _make(self, name, template):
        with self._lock:
            pod = Pod(self, name, template)
            self.pods[name] = pod
        self.publish()
        pod.start()
        return pod

    def _delete(self, pod):
        seconds, killed, codes = pod.delete()
        grace = pod.spec.get("terminationGracePeriodSeconds", 30)
        with self._lock:
            self.ends.append((pod.name, grace, seconds, killed, codes))
            del self.pods[pod.name]
        self.publish()

    def publish(self):
        """Endpoints and names, after a pod has come, gone or changed."""
        with self._lock:
            names = []
            for document in of_kind(self.documents, "Service"):
                spec, name = document["spec"], document["metadata"]["name"]
                early = spec.get("publishNotReadyAddresses", False)
                chosen = [
                    pod
                    for pod in self.pods.values()
                    if selects({"matchLabels": spec["selector"]}, pod.labels)
                    and (early or (pod.ready and not pod.terminating))
                ]
                if name in self.services:
                    self.services[name].publish(chosen)
                    addresses = [self.services[name].host.address]
                else:
                    addresses = [pod.address for pod in chosen]
                    names += [(f"{pod.name}.{name}", pod.address) for pod in chosen]
                for suffix in ("", ".conclave", ".conclave.svc", ".conclave.svc.cluster.local"):
                    names += [(name + suffix, address) for address in addresses]
            self.network.set_aliases(names)

    def wait(self, condition, seconds, what):
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"not {what} after {seconds} s; see {self.folder}")
            time.sleep(0.02)

    def wait_ready(self, *names, seconds=60):
        self.wait(
            lambda: all(name in self.pods and self.pods[name].ready for name in names),
            seconds,
            f"ready: {', '.join(names)}",
        )
