#!/usr/bin/env python3
"""What can be said of the manifests without running them: every overlay renders alike with old and
current kubectl, is valid, and holds what docs/deploy.md promises of it."""

import json
import os
import subprocess
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "../network")]

import deploy_tools
import junit
import sizing
from manifests import (
    CLUSTER_WIDE,
    allowed,
    expand,
    identity,
    named,
    of_kind,
    overlays,
    pod_templates,
    render,
    selects,
)

# The first with gRPC probes that are not a preview, and two later ones.
KUBERNETES = ("1.27.0", "1.32.0", "1.37.0")
SCHEMAS = {"LeaderWorkerSet", "ServiceMonitor", "PrometheusRule"}
# Made by hand: docs/deploy.md, "Secrets".
SECRETS = {"conclave-internal", "conclave-hub", "conclave-tls", "conclave-api-keys"}
PROGRAMS = {
    "conclave-coordinator": "coordinator/conclave-coordinator",
    "conclave-worker": "worker/conclave-worker",
    "conclave-workers": "deploy/image/conclave-workers",
    "conclave-fetch": "deploy/fetch/conclave-fetch",
}


def containers(template):
    return template["spec"].get("initContainers", []) + template["spec"]["containers"]


def component(template):
    return template["metadata"]["labels"]["app.kubernetes.io/component"]


def settings(documents):
    return named(documents, "ConfigMap", "conclave")["data"]


class ManifestsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if deploy_tools.MISSING:
            raise unittest.SkipTest(f"SKIPPED: {deploy_tools.MISSING}")
        cls.rendered = {name: render(f"deploy/overlays/{name}") for name in overlays()}
        # monitoring stands beside any other, and serves nothing by itself.
        cls.serving = {n: d for n, d in cls.rendered.items() if n != "monitoring"}

    subject = ""  # what a failure is about

    def _formatMessage(self, msg, standardMsg):
        return f"{self.subject}: {super()._formatMessage(msg, standardMsg)}"

    def each(self, rendered=None):
        for self.subject, documents in (rendered or self.serving).items():
            yield documents

    def each_server(self):
        """(objects, template) of coordinators and workers."""
        for documents, template, _ in self.each_pod():
            if component(template) != "fetch":
                yield documents, template

    def each_pod(self):
        for overlay, documents in self.serving.items():
            for name, template, count in pod_templates(documents):
                self.subject = f"{overlay}, {name}"
                yield documents, template, count

    def test_there_are_the_overlays_that_the_documentation_names(self):
        with open("docs/deploy.md", encoding="utf-8") as file:
            text = file.read()
        self.assertEqual(
            overlays(),
            ["cpu-demo", "monitoring", "multi-node-lws", "multi-node-statefulset", "rdma",
             "single-node", "tls"],
        )  # fmt: skip
        for name in overlays():
            self.assertIn(f"`{name}`", text)
        for name in SECRETS:
            self.assertIn(name, text)

    def test_old_and_current_kubectl_render_the_same_objects(self):
        for name, documents in self.rendered.items():
            with self.subTest(overlay=name):
                old = render(f"deploy/overlays/{name}", "1.20")
                for document in old:  # the old one writes some that are empty
                    for key in ("labels", "annotations"):
                        if document["metadata"].get(key) == {}:
                            del document["metadata"][key]
                key = json.dumps
                self.assertEqual(sorted(old, key=key), sorted(documents, key=key))

    def test_every_object_is_valid_for_several_versions_of_kubernetes(self):
        import kubernetes_validate

        for name, documents in self.rendered.items():
            for document in documents:
                if document["kind"] in SCHEMAS:
                    continue
                for version in KUBERNETES:
                    with self.subTest(overlay=name, object=identity(document), version=version):
                        kubernetes_validate.validate(document, version, strict=True)

    def test_every_custom_object_is_valid_and_its_pods_are(self):
        import jsonschema
        import kubernetes_validate

        seen = set()
        for documents in self.each(self.rendered):
            for document in documents:
                if document["kind"] not in SCHEMAS:
                    continue
                seen.add(document["kind"])
                path = os.path.join(HERE, "schemas", f"{document['kind'].lower()}.json")
                with open(path, encoding="utf-8") as file:
                    jsonschema.validate(document, json.load(file))
                for _, template, _ in pod_templates([document]):
                    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}}
                    pod["spec"] = template["spec"]
                    for version in KUBERNETES:
                        kubernetes_validate.validate(pod, version, strict=True)
        self.assertEqual(seen, SCHEMAS)

    def test_a_field_that_does_not_exist_is_found(self):
        import kubernetes_validate

        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}}
        pod["spec"] = {"containers": [{"name": "a", "image": "a", "comand": ["b"]}]}
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(pod, KUBERNETES[0], strict=True)

    def test_objects_are_in_the_namespace_or_in_none(self):
        for documents in self.each(self.rendered):
            for document in documents:
                kind, namespace, name = identity(document)
                want = "" if kind in CLUSTER_WIDE else "conclave"
                self.assertEqual(namespace, want, (kind, name))

    def test_pods_have_no_rights_that_they_do_not_need(self):
        for overlay, documents in self.serving.items():
            for name, template, _ in pod_templates(documents):
                spec = template["spec"]
                self.assertIs(spec["automountServiceAccountToken"], False)
                self.assertIs(spec["securityContext"]["runAsNonRoot"], True)
                self.assertEqual(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault")
                for field in ("hostNetwork", "hostPID", "hostIPC"):
                    self.assertNotIn(field, spec)
                for container in containers(template):
                    with self.subTest(overlay=overlay, pod=name, container=container["name"]):
                        context = container["securityContext"]
                        self.assertIs(context["allowPrivilegeEscalation"], False)
                        self.assertIs(context["readOnlyRootFilesystem"], True)
                        self.assertEqual(context["capabilities"]["drop"], ["ALL"])
                        self.assertNotIn("add", context["capabilities"])
                        self.assertIn("memory", container["resources"]["limits"])
                        self.assertIn("memory", container["resources"]["requests"])
                        self.assertIn("cpu", container["resources"]["requests"])
            (account,) = of_kind(documents, "ServiceAccount")
            self.assertIs(account["automountServiceAccountToken"], False)

    def test_namespaces_are_as_strict_as_their_pods_allow(self):
        for overlay, documents in self.serving.items():
            (namespace,) = of_kind(documents, "Namespace")
            level = namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
            folders = any(
                "hostPath" in volume
                for _, template, _ in pod_templates(documents)
                for volume in template["spec"].get("volumes", [])
            )
            self.assertEqual(level, "privileged" if folders else "restricted", overlay)

    def test_servers_are_probed_by_grpc_on_a_port_they_listen_on(self):
        for documents, template in self.each_server():
            for container in template["spec"]["containers"]:
                ports = {port["containerPort"] for port in container["ports"]}
                listening = {
                    int(expand(argument, settings(documents)).rpartition(":")[2])
                    for argument in container["args"]
                    if "-listen=" in argument
                }
                self.assertEqual(ports, listening)
                services = {"liveness", "readiness"} if container["name"] == "coordinator" else {None}
                for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                    self.assertIn(container[probe]["grpc"]["port"], ports)
                    self.assertIn(container[probe]["grpc"].get("service"), services)

    def test_a_pod_may_stop_for_longer_than_it_takes(self):
        for documents, template in self.each_server():
            for container in template["spec"]["containers"]:
                hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {})
                pre_stop = int(hook.get("command", ["sleep", "0"])[1])
                (drain,) = [a for a in container["args"] if a.startswith("--drain-limit=")]
                drain = int(expand(drain, settings(documents)).partition("=")[2])
                grace = template["spec"]["terminationGracePeriodSeconds"]
                self.assertGreaterEqual(grace, pre_stop + drain + 10)
                limit = int(settings(documents)["CONCLAVE_DRAIN_SECONDS"])
                if container["name"] == "coordinator":
                    self.assertEqual(drain, limit)
                    self.assertGreater(pre_stop, 0)
                else:  # a worker outlasts the streams that need it
                    self.assertGreater(drain, limit)

    def test_the_shape_is_that_of_the_pods(self):
        for documents in self.each():
            values = settings(documents)
            number = {k: int(v) for k, v in values.items() if v.isdigit()}
            self.assertEqual(
                number["CONCLAVE_WORKERS"], number["CONCLAVE_DP"] * number["CONCLAVE_TP"]
            )
            self.assertEqual(number["CONCLAVE_WORKERS_PER_POD"] % number["CONCLAVE_TP"], 0)
            (pods,) = [
                (template, count)
                for _, template, count in pod_templates(documents)
                if component(template) == "worker"
            ]
            template, count = pods
            self.assertEqual(number["CONCLAVE_WORKERS"], count * number["CONCLAVE_WORKERS_PER_POD"])
            (worker,) = template["spec"]["containers"]
            for kind in ("requests", "limits"):
                gpus = worker["resources"][kind].get("nvidia.com/gpu", 0)
                cuda = values["CONCLAVE_DEVICE"] == "cuda"
                self.assertEqual(gpus, number["CONCLAVE_WORKERS_PER_POD"] if cuda else 0)

    def test_what_pods_refer_to_exists(self):
        for documents, template, _ in self.each_pod():
            spec = template["spec"]
            there = {(kind, name) for kind, _, name in map(identity, documents)}
            there |= {("Secret", name) for name in SECRETS}
            self.assertIn(("ServiceAccount", spec["serviceAccountName"]), there)
            if component(template) != "fetch":
                self.assertIn(("PriorityClass", spec["priorityClassName"]), there)
            for volume in spec["volumes"]:
                for kind, field, name in (
                    ("Secret", "secret", "secretName"),
                    ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
                ):
                    if field in volume:
                        self.assertIn((kind, volume[field][name]), there)
            volumes = {volume["name"] for volume in spec["volumes"]}
            for container in containers(template):
                for source in container.get("envFrom", []):
                    self.assertIn(("ConfigMap", source["configMapRef"]["name"]), there)
                mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
                self.assertLessEqual(mounts, volumes)
            used = {m["name"] for c in containers(template) for m in c.get("volumeMounts", [])}
            self.assertEqual(used, volumes, "volumes that nobody mounts")

    def test_workers_of_gpus_have_memory_to_share(self):
        for documents, template in self.each_server():
            if component(template) == "worker" and settings(documents)["CONCLAVE_DEVICE"] == "cuda":
                (worker,) = template["spec"]["containers"]
                (name,) = [m["name"] for m in worker["volumeMounts"] if m["mountPath"] == "/dev/shm"]
                (volume,) = [v for v in template["spec"]["volumes"] if v["name"] == name]
                self.assertEqual(volume["emptyDir"], {"medium": "Memory", "sizeLimit": "8Gi"})

    def test_what_mounts_a_volume_of_one_node_is_on_the_node_of_the_workers(self):
        seen = set()
        for documents, template, _ in self.each_pod():
            of_one_node = {
                claim["metadata"]["name"]
                for claim in of_kind(documents, "PersistentVolumeClaim")
                if claim["spec"]["accessModes"] == ["ReadWriteOnce"]
            }
            claims = [v.get("persistentVolumeClaim", {}) for v in template["spec"]["volumes"]]
            if not any(claim.get("claimName") in of_one_node for claim in claims):
                continue
            seen.add(component(template))
            gpus = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
            self.assertIn(gpus, template["spec"]["tolerations"])
            required = template["spec"]["affinity"]["podAffinity"].get(
                "requiredDuringSchedulingIgnoredDuringExecution", []
            )
            if component(template) == "worker":  # needs nobody: the others wait for it
                self.assertEqual(required, [])
                (owner,) = of_kind(documents, "StatefulSet")
                self.assertEqual(owner["spec"]["replicas"], 1)
                continue
            (term,) = required
            self.assertEqual(term["topologyKey"], "kubernetes.io/hostname")
            chosen = [
                component(other)
                for _, other, _ in pod_templates(documents)
                if selects(term["labelSelector"], other["metadata"]["labels"])
            ]
            self.assertEqual(chosen, ["worker"])
        self.assertEqual(seen, {"coordinator", "fetch", "worker"})

    def test_nodes_that_download_for_themselves_download_the_same(self):
        (fetch,) = of_kind(self.rendered["multi-node-lws"], "DaemonSet")
        (program,) = fetch["spec"]["template"]["spec"]["initContainers"]
        self.assertIn("--pinned", program["args"])
        self.assertRegex(
            settings(self.rendered["multi-node-lws"])["CONCLAVE_REVISION"], "^[0-9a-f]{40}$"
        )
        folders = [
            (template["spec"]["nodeSelector"], volume["hostPath"])
            for _, template, _ in pod_templates(self.rendered["multi-node-lws"])
            for volume in template["spec"]["volumes"]
            if "hostPath" in volume
        ]
        self.assertEqual(len(folders), 3)
        self.assertEqual(folders, folders[:1] * 3, "not where the servers look for it")

    def test_every_flag_is_one_of_the_program_and_every_variable_is_set(self):
        for documents, template, _ in self.each_pod():
            for container in containers(template):
                environment = dict(settings(documents))
                environment.update({e["name"]: "x" for e in container.get("env", [])})
                environment["LWS_LEADER_ADDRESS"] = "x"  # by the controller
                (program,) = container["command"]
                if program == "sleep":
                    continue
                before, _, after = " ".join(container["args"]).partition(" -- ")
                for name, arguments in ((program, before), ("conclave-worker", after)):
                    flags = known_flags(name)
                    for argument in arguments.split():
                        self.assertIn(argument.partition("=")[0], flags, name)
                        self.assertNotIn("$(", expand(argument, environment))

    def test_services_select_pods_and_name_their_ports(self):
        for documents in self.each():
            for service in of_kind(documents, "Service"):
                spec = service["spec"]
                chosen = [
                    template
                    for _, template, _ in pod_templates(documents)
                    if selects({"matchLabels": spec["selector"]}, template["metadata"]["labels"])
                ]
                self.assertEqual(len(chosen), 1, service["metadata"]["name"])
                (container,) = chosen[0]["spec"]["containers"]
                names = {port["name"] for port in container["ports"]}
                self.assertLessEqual({port["targetPort"] for port in spec["ports"]}, names)
                # Users get a coordinator that is ready; workers need it before.
                early = spec.get("publishNotReadyAddresses", False)
                self.assertEqual(early, service["metadata"]["name"] != "conclave")

    def test_the_monitor_selects_a_service_with_a_metrics_port(self):
        (monitor,) = of_kind(self.rendered["monitoring"], "ServiceMonitor")
        (endpoint,) = monitor["spec"]["endpoints"]
        for documents in self.each():
            chosen = [
                service
                for service in of_kind(documents, "Service")
                if selects(monitor["spec"]["selector"], service["metadata"]["labels"])
            ]
            self.assertEqual([s["metadata"]["name"] for s in chosen], ["conclave-internal"])
            self.assertIn(endpoint["port"], {port["name"] for port in chosen[0]["spec"]["ports"]})

    def test_no_pod_of_the_group_is_evicted(self):
        for documents in self.each():
            (budget,) = of_kind(documents, "PodDisruptionBudget")
            self.assertEqual(budget["spec"]["maxUnavailable"], 0)
            for _, template, _ in pod_templates(documents):
                labels = template["metadata"]["labels"]
                covered = selects(budget["spec"]["selector"], labels)
                self.assertEqual(covered, component(template) != "fetch")

    def test_network_policies_let_through_what_is_needed_and_nothing_else(self):
        def pod(of):
            name = "app.kubernetes.io/"
            return {f"{name}name": "conclave", f"{name}component": of}

        coordinator, worker, fetch = pod("coordinator"), pod("worker"), pod("fetch")
        stranger = ("namespace", {"kubernetes.io/metadata.name": "default"})
        prometheus = ("namespace", {"kubernetes.io/metadata.name": "monitoring"})
        system = ("namespace", {"kubernetes.io/metadata.name": "kube-system"})
        outside, node_cache = "198.51.100.7", "169.254.20.10"
        for overlay, rendered in self.serving.items():
            documents = rendered + self.rendered["monitoring"]
            for want, source, target, port in (
                (True, stranger, coordinator, 50051),
                (True, outside, coordinator, 50051),
                (True, worker, coordinator, 7001),
                (False, stranger, coordinator, 7001),
                (False, outside, coordinator, 7001),
                (False, fetch, coordinator, 7001),
                (True, worker, worker, 34567),
                (False, stranger, worker, 34567),
                (False, stranger, worker, 7101),
                (False, coordinator, worker, 34567),
                (False, worker, outside, 443),
                (False, coordinator, outside, 443),
                (True, prometheus, coordinator, 9400),
                (False, stranger, coordinator, 9400),
                (False, prometheus, worker, 9400),
            ):
                with self.subTest(overlay=overlay, source=source, target=target, port=port):
                    self.assertEqual(allowed(documents, source, target, port), want)
            if overlay != "cpu-demo":
                self.assertTrue(allowed(documents, fetch, outside, 443), overlay)
                self.assertFalse(allowed(documents, fetch, outside, 80), overlay)
            for protocol in ("UDP", "TCP"):
                for source, target, want in (
                    (worker, system, True),
                    (worker, node_cache, True),
                    (fetch, system, True),
                    (coordinator, system, False),
                    (worker, stranger, False),
                    (worker, outside, False),
                    (fetch, outside, False),
                ):
                    with self.subTest(overlay=overlay, source=source, target=target):
                        self.assertEqual(allowed(documents, source, target, 53, protocol), want)

    def test_workers_of_several_pods_are_spread_and_start_together(self):
        for documents, template, count in self.each_pod():
            if component(template) != "worker":
                continue
            (spread,) = template["spec"]["topologySpreadConstraints"]
            self.assertEqual(spread["topologyKey"], "kubernetes.io/hostname")
            self.assertTrue(selects(spread["labelSelector"], template["metadata"]["labels"]))
            for owner in of_kind(documents, "StatefulSet"):
                self.assertEqual(owner["spec"]["podManagementPolicy"], "Parallel")
                self.assertEqual(owner["spec"]["updateStrategy"]["type"], "OnDelete")
            for owner in of_kind(documents, "LeaderWorkerSet"):
                self.assertEqual(owner["spec"]["leaderWorkerTemplate"]["restartPolicy"], "None")
                self.assertEqual(owner["spec"]["startupPolicy"], "LeaderCreated")


def known_flags(program):
    path = os.path.abspath(PROGRAMS[program])
    text = subprocess.run([path, "--help"], capture_output=True, text=True, check=True).stdout
    return {word.strip(",") for word in text.split() if word.startswith("--")}


class SizingTest(unittest.TestCase):
    def test_the_table_of_the_documentation_is_what_plan_says(self):
        with open("docs/deploy.md", encoding="utf-8") as file:
            text = file.read()
        self.assertIn("\n".join(sizing.table(os.path.abspath("client/conclave"))), text)


if __name__ == "__main__":
    junit.run()
