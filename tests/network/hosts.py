"""Hosts in one process: Linux network namespaces with addresses of their own, joined by a bridge.

    with Network() as network:
        server, client = network.host("server"), network.host("client")
        process = server.start(["some-server", "--listen", f"{server.address}:80"])
        client.run(["curl", "http://server/"], check=True)
        server.unplug()                      # what it sends is lost from here on
        client.call(socket.create_connection, ("server", 80))

A host has a name (its host name, and resolved by every host of its network), a loopback interface
and `eth0`. It shares files, processes and memory with the machine. Nothing reaches the machine's
own network from it, or it from there.

Nothing is left behind, however this process ends: no namespace has a name that would keep it. Each
belongs to a thread of this process; what is started on a host is killed by the kernel when that
thread ends, and a namespace goes, with its interfaces, when nobody is in it.
"""

import concurrent.futures
import ctypes
import ipaddress
import os
import subprocess
import tempfile

CLONE_NEWNS = 0x00020000  # mounts
CLONE_NEWUTS = 0x04000000  # host name
CLONE_NEWNET = 0x40000000
SUBNET = "10.77.0.0/24"

# For a shell whose $0 is our process id: we may have died before the signal was asked for.
_UNLESS_ORPHAN = 'test "$PPID" = "$0" && exec "$@"'

_libc = ctypes.CDLL(None, use_errno=True)


class NotPermitted(Exception):
    """This machine does not let us make hosts; says what is missing."""


def become_root(argv):
    """Starts this program anew as root of a user namespace if it may not make hosts as it is; if
    that is refused, goes on, and Network says NotPermitted. Call it before anything else."""
    as_root = ["unshare", "--user", "--map-root-user"]
    if not _works(["unshare", "--net", "true"]) and _works([*as_root, "--net", "true"]):
        os.execvp(as_root[0], [*as_root, *argv])


def _works(command):
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def _unshare(what):
    if _libc.unshare(what) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise NotPermitted(f"no new namespaces here ({reason}): needs root, CAP_SYS_ADMIN")


def _checked(command, **options):
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    except FileNotFoundError:
        raise NotPermitted(f"{command[0]} is not installed") from None
    if done.returncode != 0:
        raise NotPermitted(f"{' '.join(command)}: {done.stderr.strip()}")


class _Namespace:
    """A thread that has left the machine's network, and runs what it is given."""

    def __init__(self, kinds):
        self.thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        try:
            self.call(_unshare, kinds)
            self.file = self.call(os.open, "/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            self.thread.shutdown()
            raise

    @property
    def path(self):
        return f"/proc/{os.getpid()}/fd/{self.file}"

    def call(self, function, *arguments, **options):
        return self.thread.submit(function, *arguments, **options).result()

    def ip(self, *lines):
        """Commands of ip(8)."""
        self.call(_checked, ["ip", "-batch", "-"], input="\n".join(lines) + "\n")

    def close(self):
        self.thread.shutdown()
        os.close(self.file)


def check_permitted(names=True):
    """Raises NotPermitted where hosts are not to be had."""
    with Network(names=names) as network:
        try:
            network.host("probe").start(["true"]).wait()
        except FileNotFoundError as error:
            raise NotPermitted(f"{error.filename} is not installed") from None


class Network:
    """Hosts on one bridge. Where the machine forbids mounts, names=False: then hosts are reached by
    address only."""

    def __init__(self, subnet=SUBNET, names=True):
        self.subnet = ipaddress.ip_network(subnet)
        self.hosts = []
        self._free = self.subnet.hosts()
        self._ports = 0
        self._names = tempfile.NamedTemporaryFile("w", prefix="hosts.") if names else None
        self._aliases = []
        self._switch = _Namespace(CLONE_NEWNET)
        try:
            if names:
                os.fchmod(self._names.fileno(), 0o644)  # programs that are not root read it too
            self._switch.ip("link add bridge0 type bridge", "link set bridge0 up")
            self._write_names()
        except BaseException:
            self.close()
            raise

    def host(self, name):
        """A new host with the next free address."""
        host = Host(self, name, str(next(self._free)), self._names and self._names.name)
        self.hosts.append(host)
        self._write_names()
        return host

    def remove(self, host):
        """Closes the host; its address is not used again, nor does its name resolve."""
        self.hosts.remove(host)
        self._write_names()
        host.close()

    def set_aliases(self, aliases):
        """(name, address) of all names that resolve beside those of hosts. A name may have several
        addresses, or be a host's too."""
        self._aliases = list(aliases)
        self._write_names()

    def _write_names(self):
        """In place: every host has this very file as its /etc/hosts."""
        if not self._names:
            return
        names = [("localhost", "127.0.0.1"), *((host.name, host.address) for host in self.hosts)]
        text = "".join(f"{address} {name}\n" for name, address in names + self._aliases).encode()
        os.pwrite(self._names.fileno(), text, 0)
        os.ftruncate(self._names.fileno(), len(text))

    def _cable(self, namespace, interface, address, port_setting):
        """A new pair of interfaces, one in the switch; its name there is returned."""
        self._ports += 1
        port = f"port{self._ports}"
        self._switch.ip(
            f"link add {port} type veth peer name {interface} netns {namespace.path}",
            f"link set {port} {port_setting} up",
        )
        namespace.ip(
            f"address add {address}/{self.subnet.prefixlen} dev {interface}",
            f"link set {interface} up",
        )
        return port

    def _set(self, port, state):
        self._switch.ip(f"link set {port} {state}")

    def close(self):
        """Kills what runs on the hosts."""
        for host in self.hosts:
            host.close()
        self._switch.close()
        if self._names:
            self._names.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Host:
    """Made by Network.host. Any thread may use it."""

    interface = "eth0"

    def __init__(self, network, name, address, names_file):
        self.network = network
        self.name = name
        self.address = address
        self.processes = []
        self._inside = _Namespace(CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWNS)
        try:
            self.call(_set_host_name, name)
            if names_file:
                self.call(_checked, ["mount", "--make-rprivate", "/"])
                self.call(_checked, ["mount", "--bind", names_file, "/etc/hosts"])
            self._inside.ip("link set lo up")
            self._port = network._cable(self._inside, self.interface, address, "master bridge0")
        except BaseException:
            self._inside.close()
            raise

    def add_blind_interface(self, interface, address):
        """An interface that is up, with an address, and whose cable leads nowhere."""
        self.network._cable(self._inside, interface, address, "")

    def start(self, command, **options):
        """subprocess.Popen on this host. The process is killed when the host is closed."""
        wrapper = ["setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", _UNLESS_ORPHAN]
        process = self.call(subprocess.Popen, [*wrapper, str(os.getpid()), *command], **options)
        self.processes.append(process)
        return process

    def run(self, command, **options):
        """subprocess.run on this host."""
        return self.call(subprocess.run, command, **options)

    def call(self, function, *arguments, **options):
        """The function's result, run here; sockets that it makes are this host's for good."""
        return self._inside.call(function, *arguments, **options)

    def unplug(self):
        """Pulls the cable out of the switch: the host keeps its address, packets are lost."""
        self.network._set(self._port, "down")

    def plug_in(self):
        self.network._set(self._port, "up")

    def close(self):
        """Kills what runs here."""
        self._inside.close()
        for process in self.processes:
            process.kill()
            process.wait()


def _set_host_name(name):
    if _libc.sethostname(name.encode(), len(name)) != 0:
        raise NotPermitted(f"sethostname: {os.strerror(ctypes.get_errno())}")
