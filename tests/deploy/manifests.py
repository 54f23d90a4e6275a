"""Manifests as kubectl renders them, and what one asks of them."""

import functools
import ipaddress
import os
import re
import shutil
import subprocess
import tempfile

import deploy_tools

CLUSTER_WIDE = {"Namespace", "PriorityClass"}


def overlays():
    return sorted(os.listdir("deploy/overlays"))


@functools.cache
def _copy():
    """kustomize follows links, and refuses files that lie elsewhere then; Bazel's are links."""
    folder = tempfile.mkdtemp(prefix="manifests.", dir=os.environ.get("TEST_TMPDIR"))
    for part in ("deploy", "tests/deploy/overlays"):
        shutil.copytree(part, os.path.join(folder, part))
    return folder


def render(folder, kubectl="current"):
    """The objects of a folder's kustomization."""
    import yaml

    done = subprocess.run(
        [deploy_tools.KUBECTL[kubectl], "kustomize", os.path.join(_copy(), folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{folder}, kubectl {kubectl}: {done.stderr}")
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def identity(document):
    metadata = document["metadata"]
    return document["kind"], metadata.get("namespace", ""), metadata["name"]


def render_on(overlay, base):
    """An overlay put on another than it names, as docs/deploy.md says to."""
    import yaml

    folder = os.path.join(_copy(), "deploy/overlays", f"{overlay}-on-{base}")
    shutil.copytree(os.path.join(_copy(), "deploy/overlays", overlay), folder)
    path = os.path.join(folder, "kustomization.yaml")
    with open(path, encoding="utf-8") as file:
        kustomization = yaml.safe_load(file)
    kustomization["bases"] = [f"../{base}"]
    with open(path, "w", encoding="utf-8") as file:
        yaml.safe_dump(kustomization, file)
    return render(folder)


def of_kind(documents, kind):
    return [document for document in documents if document["kind"] == kind]


def named(documents, kind, name):
    (found,) = [d for d in of_kind(documents, kind) if d["metadata"]["name"] == name]
    return found


def pod_templates(documents):
    """(what it belongs to, template, how many pods) of everything that makes pods."""
    for document in documents:
        kind, _, name = identity(document)
        spec = document["spec"] if "spec" in document else {}
        if kind == "LeaderWorkerSet":
            group = spec["leaderWorkerTemplate"]
            groups = spec["replicas"]
            yield f"{name} leader", group["leaderTemplate"], groups
            yield f"{name} worker", group["workerTemplate"], groups * (group["size"] - 1)
        elif kind in ("Deployment", "StatefulSet"):
            yield name, spec["template"], spec["replicas"]
        elif kind == "DaemonSet":
            yield name, spec["template"], 1  # on each node that it selects
        elif kind == "Job":
            yield name, spec["template"], spec.get("completions", 1)


def selects(selector, labels):
    """A label selector of the API: matchLabels, matchExpressions; {} selects everything."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for expression in selector.get("matchExpressions", []):
        value = labels.get(expression["key"])
        holds = {
            "In": value in expression.get("values", []),
            "NotIn": value not in expression.get("values", []),
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[expression["operator"]]
        if not holds:
            return False
    return True


def expand(text, environment):
    """$(NAME) as in the API: $$ is $, a name that is not set stays as it is."""

    def value(match):
        if match[0] == "$$":
            return "$"
        return environment.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^()]+)\)", value, text)


def allowed(documents, source, target, port, protocol="TCP"):
    """Whether the network policies let pods labelled `source` reach those labelled `target`. A peer
    outside of the cluster's pods is its address; pods of another namespace are ("namespace", its
    labels)."""
    return _direction(documents, "Egress", source, target, port, protocol) and _direction(
        documents, "Ingress", target, source, port, protocol
    )


def _direction(documents, direction, subject, peer, port, protocol):
    if isinstance(subject, (str, tuple)):
        return True  # none of ours: no policy of ours holds it
    isolated = False
    rules = []
    for policy in of_kind(documents, "NetworkPolicy"):
        spec = policy["spec"]
        if direction in spec["policyTypes"] and selects(spec["podSelector"], subject):
            isolated = True
            rules += spec.get(direction.lower()) or []
    return not isolated or any(_rule(rule, direction, peer, port, protocol) for rule in rules)


def _rule(rule, direction, peer, port, protocol):
    ports = rule.get("ports")
    if ports and not any(
        p.get("protocol", "TCP") == protocol and p.get("port", port) == port for p in ports
    ):
        return False
    peers = rule.get("from" if direction == "Ingress" else "to")
    return not peers or any(_is_peer(p, peer) for p in peers)


def _is_peer(selector, peer):
    if isinstance(peer, str):
        blocks = [selector["ipBlock"]["cidr"]] if "ipBlock" in selector else []
        return any(ipaddress.ip_address(peer) in ipaddress.ip_network(block) for block in blocks)
    if isinstance(peer, tuple):
        return "namespaceSelector" in selector and selects(selector["namespaceSelector"], peer[1])
    return "podSelector" in selector and "namespaceSelector" not in selector and selects(
        selector["podSelector"], peer
    )  # fmt: skip
