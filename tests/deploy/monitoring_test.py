#!/usr/bin/env python3
"""What deploy/overlays/monitoring ships, in a Prometheus: rules fire when they should, beside a
service that runs, and each query of the dashboard brings series."""

import http
import json
import os
import shutil
import subprocess
import sys
import unittest
import urllib.parse
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "../network")]

import junit
import running
from hosts import become_root
from manifests import named, of_kind, render, selects
from running import COORDINATOR, WORKERS, Streams, scratch

PORT = 9090


def setUpModule():
    running.check_possible()
    for program in ("prometheus", "promtool"):
        if not shutil.which(program):
            raise unittest.SkipTest(f"SKIPPED: no {program} (tools/setup --dev installs it)")


def shipped_rules():
    (rules,) = of_kind(render("deploy/overlays/monitoring"), "PrometheusRule")
    return rules["spec"]


def queries():
    """(panel, query) of the dashboard, with its variables as Grafana would set them."""
    config = named(render("deploy/overlays/monitoring"), "ConfigMap", "conclave-dashboard")
    dashboard = json.loads(config["data"]["conclave.json"])
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"].replace("$__rate_interval", "20s").replace("$instance", ".*")
            yield panel["title"], query


def write_json(path, value):
    """JSON is YAML."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file)
    return path


class RulesTest(unittest.TestCase):
    def test_each_alert_fires_on_what_it_is_for_and_on_nothing_else(self):
        folder = scratch()
        write_json(os.path.join(folder, "rules.json"), shipped_rules())
        shutil.copy(os.path.join(HERE, "rules_cases.yaml"), folder)
        for command in (["check", "rules", "rules.json"], ["test", "rules", "rules_cases.yaml"]):
            done = subprocess.run(
                ["promtool", *command], cwd=folder, capture_output=True, text=True, check=False
            )
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_every_alert_has_a_case_and_is_in_the_documentation(self):
        with open(os.path.join(HERE, "rules_cases.yaml"), encoding="utf-8") as file:
            cases = file.read()
        with open("docs/deploy.md", encoding="utf-8") as file:
            signs = " ".join(line.split("|")[1] for line in file if line.startswith("|"))
        (group,) = shipped_rules()["groups"]
        for rule in group["rules"]:
            self.assertIn(f"alertname: {rule['alert']}\n", cases)
            self.assertIn(rule["alert"], signs, "without a row of what to do")


class MonitoringTest(running.RunTest):
    """cpu-demo, and a Prometheus that is told of it as the operator would."""

    overlay = "deploy/overlays/cpu-demo"

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.cluster.scale(*COORDINATOR)
        cls.cluster.scale(*WORKERS)
        cls.cluster.wait_ready(*cls.pods, f"{COORDINATOR[1]}-0")
        cls.prometheus = cls.cluster.network.host("prometheus")
        cls.start_prometheus(scratch())

    @classmethod
    def start_prometheus(cls, folder):
        (monitor,) = of_kind(render("deploy/overlays/monitoring"), "ServiceMonitor")
        (endpoint,) = monitor["spec"]["endpoints"]
        (service,) = [
            service
            for service in of_kind(cls.cluster.documents, "Service")
            if selects(monitor["spec"]["selector"], service["metadata"]["labels"])
        ]
        (port,) = [p["port"] for p in service["spec"]["ports"] if p["name"] == endpoint["port"]]
        rules = shipped_rules()
        for group in rules["groups"]:
            for rule in group["rules"]:
                if "for" in rule:
                    rule["for"] = "1s"  # nobody waits for minutes here
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s", "scrape_timeout": "1s"},
            "rule_files": [write_json(os.path.join(folder, "rules.json"), rules)],
            "scrape_configs": [
                {
                    "job_name": service["metadata"]["name"],
                    "metrics_path": endpoint["path"],
                    "static_configs": [{"targets": [f"{service['metadata']['name']}:{port}"]}],
                }
            ],
        }
        path = write_json(os.path.join(folder, "prometheus.json"), configuration)
        with open(os.path.join(folder, "log"), "w", encoding="utf-8") as log:
            cls.prometheus.start(
                ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={folder}/data",
                 f"--web.listen-address={cls.prometheus.address}:{PORT}"],
                stdout=log, stderr=log,
            )  # fmt: skip

    def get(self, path, **query):
        url = f"http://{self.prometheus.address}:{PORT}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with self.prometheus.call(urllib.request.urlopen, url) as answer:
                return json.load(answer)["data"]
        except ConnectionRefusedError:
            return None
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.SERVICE_UNAVAILABLE:
                return None  # it reads its storage
            raise AssertionError(f"{url}: {error.read().decode()}") from None
        except urllib.error.URLError:
            return None  # it starts

    def series(self, query):
        data = self.get("query", query=query)
        return data["result"] if data else []

    def firing(self):
        data = self.get("alerts")
        alerts = data["alerts"] if data else []
        return {a["labels"]["alertname"] for a in alerts if a["state"] == "firing"}

    def test_1_every_query_of_the_dashboard_brings_series(self):
        streams = Streams(self, 2, 32)
        missing = dict.fromkeys(queries())

        def all_there():
            for panel, query in list(missing):
                found = self.series(query)
                if any(series["value"][1] != "NaN" for series in found):
                    del missing[panel, query]
            return not missing

        try:
            self.cluster.wait(all_there, 60, "each query answered")
        except AssertionError as late:
            raise AssertionError(f"{late}; without series: {list(missing)}") from None
        finally:
            streams.stop()

    def test_2_alerts_fire_when_a_worker_is_gone_and_are_over_when_it_is_back(self):
        self.cluster.wait(lambda: self.series("conclave_ready == 1"), 30, "ready, says Prometheus")
        self.cluster.wait(lambda: not self.firing(), 30, "without alerts")
        self.cluster.scale(*WORKERS, len(self.pods) - 1)
        wanted = {"ConclaveNotServing", "ConclaveWorkersMissing"}
        self.cluster.wait(lambda: wanted <= self.firing(), 30, "firing")
        self.cluster.scale(*WORKERS)
        self.cluster.wait(lambda: not wanted & self.firing(), 60, "over")

    def test_3_an_alert_fires_when_the_coordinator_is_gone(self):
        self.cluster.scale(*COORDINATOR, 0)
        self.cluster.wait(lambda: "ConclaveCoordinatorGone" in self.firing(), 30, "firing")


if __name__ == "__main__":
    become_root([sys.executable, *sys.argv])
    junit.run()
