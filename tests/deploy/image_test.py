#!/usr/bin/env python3
"""The steps of the CPU image, without Docker: an empty Debian by debootstrap stands for the base,
the scripts of deploy/image make the image of it, and a service is started from that by chroot.

Slow (minutes: it downloads a Debian) and needs root, so it runs when it is asked for:
    bazel test //tests/deploy:image_test"""

import os
import shutil
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "../network")]

import junit

SHARE = "/usr/share/conclave"
USER = "--userspec=10001:10001"


def mirror():
    """Of this machine's packages."""
    sites = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(URI)"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for uri in sites.splitlines():
        if "/dists/bookworm/" in uri:
            return uri.partition("/dists/")[0]
    raise unittest.SkipTest("SKIPPED: apt knows no mirror of Debian 12")


def in_own_mounts(argv):
    """Starts this program anew where its mounts go with it."""
    if os.geteuid() == 0 and "CONCLAVE_OWN_MOUNTS" not in os.environ:
        os.environ["CONCLAVE_OWN_MOUNTS"] = "1"
        os.execvp("unshare", ["unshare", "--mount", *argv])


class ImageTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if os.geteuid() != 0:
            raise unittest.SkipTest("SKIPPED: chroot and debootstrap need root")
        if not shutil.which("debootstrap", path="/usr/sbin:/usr/bin"):
            raise unittest.SkipTest("SKIPPED: no debootstrap (apt-get install debootstrap)")
        cls.root = cls.enterClassContext(
            tempfile.TemporaryDirectory(dir=os.environ.get("TEST_TMPDIR"))
        )
        os.chmod(cls.root, 0o755)
        command = ["/usr/sbin/debootstrap", "--variant=minbase", "bookworm", cls.root, mirror()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stdout + done.stderr).strip().splitlines()[-1:]
            raise unittest.SkipTest(f"SKIPPED: debootstrap: {' '.join(last)}")
        shutil.copy("/etc/resolv.conf", f"{cls.root}/etc/")
        # debootstrap has made the devices. Nothing of this machine's is mounted in what is deleted.
        subprocess.run(["mount", "-t", "proc", "proc", f"{cls.root}/proc"], check=True)
        cls.addClassCleanup(subprocess.run, ["umount", "--lazy", f"{cls.root}/proc"])

    def chroot(self, *command, user=True, **options):
        where = [USER] if user else []
        return subprocess.Popen(
            ["chroot", *where, self.root, *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
            **options,
        )  # fmt: skip

    def run_in(self, *command, **options):
        process = self.chroot(*command, **options)
        out, _ = process.communicate()
        self.assertEqual(process.returncode, 0, f"{command}: {out}")
        return out

    def test_the_scripts_make_an_image_that_serves(self):
        programs = tempfile.mkdtemp(dir=os.environ.get("TEST_TMPDIR"))
        for path in ("client/conclave", "coordinator/conclave-coordinator", "worker/conclave-worker"):
            os.symlink(os.path.abspath(path), os.path.join(programs, os.path.basename(path)))
        subprocess.run(["deploy/image/stage", "cpu", programs, self.root], check=True)
        self.run_in(f"{SHARE}/install-runtime", "cpu", user=False)
        self.assertIn("cpu_mxfp4", self.run_in(f"{SHARE}/check"))
        model = f"{SHARE}/models/small_gpt_oss"
        service = self.chroot(
            "conclave", "serve", "--model", model, "--workers", "2", "--device", "cpu",
            "--listen", "127.0.0.1:0",
        )  # fmt: skip
        try:
            address = ""
            for line in service.stdout:
                kind, _, address = line.strip().partition(" ")
                if kind == "serving":
                    break
            self.assertIn(":", address, "it does not serve")
            said = self.run_in(
                "conclave", "generate", "--server", address, "--prompt", "Hello", "--max-tokens", "8"
            )
            self.assertTrue(said.strip())
        finally:
            service.terminate()
            service.communicate()
        self.assertEqual(service.returncode, 0)


if __name__ == "__main__":
    in_own_mounts([sys.executable, *sys.argv])
    junit.run()
