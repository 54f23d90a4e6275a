"""GPU workers on hosts of their own (tests/network/hosts.py): each in a network namespace with its
own address and host name, found by --advertise-address and --interface, over NCCL's sockets. The
hosts share the machine's cards."""

import os
import subprocess
import time

from deployment import Deployment
from groups import Group, check_faults, check_shape, count_gpus, first_tokens, mixed
from groups import seconds_until_failed
from hosts import NotPermitted, check_permitted
from service import generate, prompt_of

# (dp, tp, exchange mode)
SHAPES = ((4, 1, "fixed"), (2, 2, "exact"), (1, 2, "replicated"))
FAULTS = (4, 1)  # the shape in which things happen to hosts
CUT_SECONDS = 10
REFUSED_SECONDS = 10


class NetworkGroup(Deployment):
    def __init__(self, here, environment, log, dp, tp, exchange="auto"):
        folder = os.path.join(here, "bin/service")
        names = ("conclave", "conclave-coordinator", "conclave-worker")
        programs = {name: os.path.join(folder, name) for name in names}
        model = os.path.join(here, "demo/tiny_gpt_oss")
        # No names: a container may forbid the mount that they take.
        super().__init__(programs, model, log, dp, tp, exchange, environment, names=False)
        self.gpus = count_gpus()

    def coordinator_flags(self):
        heads = ("sequence", "token")
        flags = [part for h in heads for part in ("--head", f"{h}={self.model}/head_{h}")]
        return [*flags, "--no-prefix-cache"]  # so that the same request is the same plan

    def worker_flags(self, index):
        return ["--device", "cuda", "--cuda-device", str(index % self.gpus)]

    def environment_of(self, host):
        # Sockets only: an InfiniBand card would be seen from every namespace.
        return dict(self.environment, NCCL_IB_DISABLE="1", NCCL_HOSTID=host.name)


def check_hosts(results, group, name):
    hosts = [rank["host"] for rank in group.ask("status")["ranks"]]
    apart = len(set(hosts)) == len(hosts)
    results.check(f"{name}: every rank on a host of its own", apart, str(hosts))


def check_cut(results, group, name, before):
    host = group.worker_hosts[1]
    seconds = seconds_until_failed(group, host.unplug)
    ok = 0 <= seconds < CUT_SECONDS
    results.check(f"{name}: a pulled cable ends all streams", ok, f"{seconds:.2f} s")
    host.plug_in()
    start = time.monotonic()
    group.wait_ready()
    same = generate(group, prompt_of(11), 16) == before
    detail = f"ready after {time.monotonic() - start:.1f} s"
    results.check(f"{name}: the worker joins once it is back", same, detail)


def check_wrong_interface(results, group, name):
    host = group.worker_hosts[0]
    serving = group.workers[0]
    start = time.monotonic()
    code = group.start_worker(0, interface="nosuch0").wait(60)
    seconds = time.monotonic() - start
    group.workers[0] = serving
    said = group.read_log(host).splitlines()[-1]
    ok = code == 1 and "nosuch0" in said and host.address in said and seconds < REFUSED_SECONDS
    results.check(f"{name}: a wrong interface is refused", ok, f"{seconds:.2f} s: {said}")


class AddressGroup(Group):
    """What is left of it on one host: each worker with an address of its own, of lo."""

    def address_of(self, index):
        return f"127.0.0.{2 + index}"


def run_addresses(results, log, here, environment):
    environment = dict(environment, CONCLAVE_BIN_DIR=os.path.join(here, "bin/service"))
    try:
        with Group(here, environment, os.path.join(log, "one"), 1, 1, "auto") as group:
            want = first_tokens(group)
            want_mixed = mixed(group)
        with AddressGroup(here, environment, os.path.join(log, "2x1"), 2, 1, "auto") as group:
            check_shape(results, group, "2 x 1, addresses of one host", want, want_mixed)
    except (RuntimeError, subprocess.SubprocessError, KeyError, ValueError) as error:
        results.add("addresses", "failed", str(error))


def run_network(results, args, here, environment):
    # The machine's own ip(8) first.
    os.environ["PATH"] += os.pathsep + os.path.join(here, "tools")
    logs = os.path.join(args.log, "network")
    try:
        check_permitted(names=False)
    except NotPermitted as why:
        results.add("network", "skipped", str(why))
        run_addresses(results, logs, here, environment)
        return
    try:
        with NetworkGroup(here, environment, os.path.join(logs, "one"), 1, 1) as group:
            want = first_tokens(group)
            want_mixed = mixed(group)
        for dp, tp, mode in SHAPES:
            name = f"{dp} x {tp} hosts, {mode}"
            log = os.path.join(logs, f"{dp}x{tp}")
            with NetworkGroup(here, environment, log, dp, tp, mode) as group:
                bits = check_shape(results, group, name, want, want_mixed)
                check_hosts(results, group, name)
                if (dp, tp) == FAULTS:
                    check_wrong_interface(results, group, name)
                    check_faults(results, group, name, bits)
                    check_cut(results, group, name, bits)
    except (NotPermitted, RuntimeError, subprocess.SubprocessError, KeyError, ValueError) as error:
        results.add("network", "failed", str(error))
