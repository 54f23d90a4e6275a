#!/usr/bin/env python3
"""Becomes a container's program, on a host of tests/network/hosts.py: a root of its own, with what
the image has on top of this machine's programs and libraries, volumes mounted in it, the user, the
capabilities and the working of `securityContext`.

Usage: container.py SPEC, a JSON file:
    root        an empty folder
    image       folder that deploy/image/stage made
    mounts      [[source, path in the container, whether read-only]...]
    user, group, groups, read_only_root, drop_capabilities, no_new_privileges
    command     program and arguments
    environment
"""

import ctypes
import json
import os
import signal
import sys

CLONE_NEWNS = 0x00020000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x1, 0x20, 0x1000, 0x4000, 0x40000
MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x2, 0x4, 0x8
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38
LAST_CAPABILITY = 40
# What a Debian image has beside the programs; /usr/share of this machine is not among it.
SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
DEVICES = ("null", "zero", "full", "random", "urandom")

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result, what):
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def mount(source, target, kind="", flags=0, data=""):
    done = _libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode())
    _check(done, f"mount {source} on {target}")


def bind(source, target, read_only=False):
    """The target is made, as what the source is."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "a").close()
    mount(source, target, flags=MS_BIND | MS_REC)
    if read_only:
        # A flag that the mount has may not go with it in a user namespace.
        kept = os.statvfs(target).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
        mount(source, target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY | kept)


def make_root(root, spec):
    mount("container", root, "tmpfs", data="mode=755,size=16m")
    for name in SYSTEM:
        if os.path.isdir(f"/usr/{name}"):
            bind(f"/usr/{name}", f"{root}/usr/{name}", read_only=True)
        if os.path.islink(f"/{name}"):
            os.symlink(f"usr/{name}", f"{root}/{name}")
        elif os.path.isdir(f"/{name}"):
            bind(f"/{name}", f"{root}/{name}", read_only=True)
    bind(f"{spec['image']}/usr/local", f"{root}/usr/local", read_only=True)
    bind(f"{spec['image']}/usr/share", f"{root}/usr/share", read_only=True)
    os.mkdir(f"{root}/etc")
    bind("/etc/ld.so.cache", f"{root}/etc/ld.so.cache", read_only=True)
    bind("/etc/hosts", f"{root}/etc/hosts", read_only=True)
    for name, text in (
        ("passwd", f"conclave:x:{spec['user']}:{spec['group']}::/tmp:/usr/sbin/nologin\n"),
        ("group", f"conclave:x:{spec['group']}:\n"),
        ("nsswitch.conf", "hosts: files\n"),
        ("resolv.conf", ""),
    ):
        with open(f"{root}/etc/{name}", "w", encoding="utf-8") as file:
            file.write(text)
    for name in ("proc", "sys"):
        bind(f"/{name}", f"{root}/{name}")
    for name in DEVICES:
        bind(f"/dev/{name}", f"{root}/dev/{name}")
    os.mkdir(f"{root}/dev/shm")
    mount("shm", f"{root}/dev/shm", "tmpfs", data="mode=1777,size=64m")  # what runtimes give
    for source, path, read_only in spec["mounts"]:
        bind(source, root + path, read_only)
    if spec["read_only_root"]:
        mount("container", root, flags=MS_REMOUNT | MS_BIND | MS_RDONLY)


def give_up_privileges(spec, change_user):
    if spec["drop_capabilities"]:
        for capability in range(LAST_CAPABILITY + 1):
            _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    if spec["no_new_privileges"]:
        _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    if change_user:
        os.setgroups(spec["groups"])
        os.setresgid(*[spec["group"]] * 3)
        os.setresuid(*[spec["user"]] * 3)


def is_mapped(user):
    """Whether the user exists in this user namespace: where somebody who is not root runs the test,
    only one does."""
    with open("/proc/self/uid_map", encoding="utf-8") as file:
        ranges = [list(map(int, line.split())) for line in file]
    return any(first <= user < first + count for first, _, count in ranges)


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        spec = json.load(file)
    parent = os.getppid()
    _check(_libc.unshare(CLONE_NEWNS), "unshare")
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    root = spec["root"]
    make_root(root, spec)
    change_user = is_mapped(spec["user"])
    os.chroot(root)
    os.chdir("/")
    give_up_privileges(spec, change_user)
    # Forgotten with the change of the user.
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)
    os.umask(0o022)
    try:
        os.execvpe(spec["command"][0], spec["command"], spec["environment"])
    except OSError as error:
        sys.exit(f"{spec['command'][0]}: {error}")


if __name__ == "__main__":
    main()
