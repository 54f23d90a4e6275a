#!/usr/bin/env python3
"""Asks grpc.health.v1, as a kubelet's native gRPC probe does, on the host it is started on.

Usage: prober.py PACKAGES     a folder of Python packages with grpcio
Lines of stdin: {"id", "address": HOST:PORT, "service", "timeout"}; of stdout, in any order:
{"id", "ok": whether SERVING, "why"}.
"""

import concurrent.futures
import json
import sys

sys.path.append(sys.argv[1])

import grpc

SERVING = 1


def request_of(service):
    """HealthCheckRequest: the service's name is field 1."""
    name = service.encode()
    return bytes([0x0A, len(name)]) + name if name else b""


def status_of(answer):
    """HealthCheckResponse: the status is field 1, not sent when it is 0."""
    return answer[1] if answer else 0


def probe(question):
    # A connection of its own for each probe, as a kubelet makes.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    try:
        with grpc.insecure_channel(question["address"], options=options) as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check")
            status = status_of(check(request_of(question["service"]), timeout=question["timeout"]))
        why = "" if status == SERVING else f"status {status}"
    except grpc.RpcError as error:
        why = f"{error.code().name}: {error.details()}"
    return {"id": question["id"], "ok": not why, "why": why}


def main():
    with concurrent.futures.ThreadPoolExecutor(16) as pool:

        def answer(done):
            print(json.dumps(done.result()) + "\n", end="", flush=True)

        for line in sys.stdin:
            pool.submit(probe, json.loads(line)).add_done_callback(answer)


if __name__ == "__main__":
    main()
