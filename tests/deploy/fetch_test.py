#!/usr/bin/env python3
"""deploy/fetch/conclave-fetch against a hub that cuts connections, sends wrong bytes and lies."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "../network")]

import junit
from hub import Hub

FETCH = os.path.abspath("deploy/fetch/conclave-fetch")
COMPLETE = ".conclave-complete"
BIG = 3 << 20


def make_model(folder):
    """Files of both kinds, in folders too, one with a name that must be quoted, one empty."""
    files = {"config.json": b"{}\n", "empty": b"", "heads/a b%.json": b"[1]", "tokenizer.json": b"t" * 999}
    files["original/model.safetensors"] = b"unwanted" * 9
    for part in range(3):
        block = hashlib.sha256(b"%d" % part).digest()
        files[f"model-{part}.safetensors"] = block * (BIG // len(block))
    for path, data in files.items():
        os.makedirs(os.path.dirname(os.path.join(folder, path)), exist_ok=True)
        with open(os.path.join(folder, path), "wb") as file:
            file.write(data)
    return {path: data for path, data in files.items() if not path.startswith("original/")}


class FetchTest(unittest.TestCase):
    def setUp(self):
        work = self.enterContext(tempfile.TemporaryDirectory(dir=os.environ.get("TEST_TMPDIR")))
        source = os.path.join(work, "source")
        os.mkdir(source)
        self.files = make_model(source)
        self.into = os.path.join(work, "models", "gpt")
        self.hub = Hub(("127.0.0.1", 0), source, repository="owner/gpt")
        self.addCleanup(self.hub.server_close)
        threading.Thread(target=self.hub.serve_forever, daemon=True).start()
        self.addCleanup(self.hub.shutdown)
        self.port = self.hub.server_address[1]

    def command(self, *flags):
        command = [sys.executable, FETCH, "--into", self.into, *flags]
        if "--wait" not in flags:
            command += ["--repository", "owner/gpt", "--endpoint", f"http://127.0.0.1:{self.port}"]
        return command

    def fetch(self, *flags):
        return subprocess.run(
            self.command(*flags), capture_output=True, text=True, timeout=60, check=False
        )

    def expect(self, done, code, *texts):
        self.assertEqual(done.returncode, code, done.stderr)
        for text in texts:
            self.assertIn(text, done.stderr)

    def expect_all_there(self):
        for path, data in self.files.items():
            with open(os.path.join(self.into, path), "rb") as file:
                self.assertEqual(file.read(), data, path)
        with open(os.path.join(self.into, COMPLETE), encoding="utf-8") as file:
            listed = json.load(file)
        self.assertEqual(set(listed["files"]), set(self.files))
        self.assertEqual(listed["commit"], self.hub.commit)
        left = [name for _, _, names in os.walk(self.into) for name in names]
        self.assertFalse([name for name in left if name.endswith(".part")])

    def expect_incomplete(self):
        self.assertFalse(os.path.exists(os.path.join(self.into, COMPLETE)))

    def requests_for(self, name):
        return [headers for path, headers in self.hub.requests if path == f"/content/{name}"]

    def test_all_files_come_and_copies_in_other_layouts_do_not(self):
        self.expect(self.fetch(), 0, "is complete")
        self.expect_all_there()
        self.assertFalse(os.path.exists(os.path.join(self.into, "original")))

    def test_cut_connections_are_taken_up_where_they_broke(self):
        sent = []

        def cut(handler, name, data, begin):
            part = data[begin : begin + (1 << 20) + 7]
            sent.append(len(part))
            handler.wfile.write(part)
            if begin + len(part) < len(data):
                handler.close_connection = True
                handler.connection.shutdown(2)

        self.hub.send_file = cut
        self.expect(self.fetch(), 0)
        self.expect_all_there()
        # Nothing was sent twice but what had not been read from a connection that broke.
        self.assertLess(sum(sent), 1.5 * sum(map(len, self.files.values())))
        ranges = [h.get("Range") for h in self.requests_for("model-0.safetensors")]
        self.assertGreater(len(ranges), 2)
        self.assertTrue(all(ranges[1:]), ranges)

    def test_a_killed_download_goes_on_where_it_was(self):
        half = threading.Event()

        def stall(handler, name, data, begin):
            handler.wfile.write(data[begin : BIG // 2])
            handler.wfile.flush()
            if len(data) == BIG:
                half.set()
                self.stalled.wait(60)

        self.stalled = threading.Event()
        self.hub.send_file = stall
        with subprocess.Popen(self.command("--jobs", "1"), stderr=subprocess.PIPE) as process:
            self.assertTrue(half.wait(30))
            part = self.wait_for_part(BIG // 2)
            process.send_signal(signal.SIGKILL)
        self.stalled.set()
        self.expect_incomplete()
        self.hub.send_file = None
        self.hub.requests.clear()
        self.expect(self.fetch(), 0)
        self.expect_all_there()
        (again,) = self.requests_for(part.partition(".safetensors")[0] + ".safetensors")
        self.assertEqual(again.get("Range"), f"bytes={BIG // 2}-")

    def wait_for_part(self, size):
        while True:
            for name in os.listdir(self.into):
                path = os.path.join(self.into, name)
                if name.endswith(".part") and os.path.getsize(path) == size:
                    return name

    def test_a_server_without_ranges_is_asked_from_the_beginning(self):
        self.hub.ranges = False
        failed = set()

        def cut_once(handler, name, data, begin):
            if name not in failed and data:
                failed.add(name)
                handler.wfile.write(data[: len(data) // 2])
                handler.close_connection = True
                handler.connection.shutdown(2)
            else:
                handler.wfile.write(data[begin:])

        self.hub.send_file = cut_once
        self.expect(self.fetch(), 0, "does not go on in the middle")
        self.expect_all_there()

    def test_wrong_bytes_are_refused_whatever_their_number(self):
        def damage(handler, name, data, begin):
            if name in self.damaged:
                data = data[:-1] + b"?"
            handler.wfile.write(data[begin:])

        self.hub.send_file = damage
        for name in ("model-1.safetensors", "tokenizer.json"):
            self.damaged = {name}
            self.expect(self.fetch(), 1, name, "hash")
            self.expect_incomplete()
            self.assertFalse(os.path.exists(os.path.join(self.into, name)))
            shutil.rmtree(self.into)
        self.damaged = {}
        self.expect(self.fetch(), 0)
        self.expect_all_there()

    def test_a_hub_that_never_sends_enough_is_given_up(self):
        def short(handler, name, data, begin):
            handler.close_connection = True
            handler.connection.shutdown(2)

        self.hub.send_file = short
        self.expect(self.fetch("--attempts", "2"), 1)
        self.expect_incomplete()

    def test_the_token_is_sent_to_the_hub_and_to_no_other_host(self):
        self.hub.token = "hf_secret"
        self.expect(self.fetch(), 1, "401", "--token-file")
        self.hub.content_host = f"localhost:{self.port}"
        token = os.path.join(os.path.dirname(os.path.dirname(self.into)), "token")
        with open(token, "w", encoding="utf-8") as file:
            file.write("hf_secret\n")
        self.hub.requests.clear()
        done = self.fetch("--token-file", token)
        self.expect(done, 0)
        self.assertNotIn("hf_secret", done.stderr)
        self.expect_all_there()
        for path, headers in self.hub.requests:
            asked_hub = not path.startswith("/content/")
            self.assertEqual("Authorization" in headers, asked_hub, path)

    def test_a_complete_folder_is_left_alone_and_needs_no_hub(self):
        self.expect(self.fetch(), 0)
        before = len(self.requests_for("model-0.safetensors"))
        self.expect(self.fetch("--verify"), 0, "complete already")
        self.assertEqual(len(self.requests_for("model-0.safetensors")), before)
        self.hub.commit = "ab" * 20
        self.expect(self.fetch(), 1, "name another folder")
        self.hub.repository = "gone/away"  # 404 is final
        self.expect(self.fetch(), 1, "404")
        self.hub.shutdown()
        self.hub.server_close()
        self.expect(self.fetch("--attempts", "1"), 0, "taken as it is")

    def test_who_must_download_what_others_do_names_a_commit(self):
        self.expect(self.fetch("--pinned"), 2, "must be a commit of 40 digits, not 'main'")
        self.assertFalse(os.path.exists(self.into))
        self.expect(self.fetch("--pinned", "--revision", self.hub.commit), 0)
        self.expect_all_there()

    def test_a_complete_folder_that_lost_something_is_refused(self):
        self.expect(self.fetch(), 0)
        path = os.path.join(self.into, "model-2.safetensors")
        with open(path, "r+b") as file:
            file.write(b"?")
        self.expect(self.fetch("--wait"), 0)
        self.expect(self.fetch("--wait", "--verify"), 1, path)
        os.truncate(path, BIG - 1)
        self.expect(self.fetch("--wait"), 1, path)

    def test_who_waits_goes_on_when_the_folder_is_complete_and_not_before(self):
        with subprocess.Popen(self.command("--wait"), stderr=subprocess.PIPE, text=True) as waiting:
            self.assertIn("waiting", waiting.stderr.readline())
            self.expect(self.fetch(), 0)
            _, said = waiting.communicate(timeout=30)
            self.assertEqual(waiting.returncode, 0, said)
            self.assertIn("is complete", said)

    def test_what_does_not_fit_on_the_disk_is_refused_with_the_numbers(self):
        entries = self.hub.entries()
        entries[-1]["size"] = 1 << 60
        self.hub.entries = lambda: entries
        self.expect(self.fetch(), 1, "GB free", "are to come")

    def test_a_path_that_leaves_the_folder_is_refused(self):
        for path in ("../evil", "/etc/evil", "a/../../evil"):
            self.hub.entries = lambda path=path: [
                {"type": "file", "path": path, "size": 1, "oid": "0" * 40}
            ]
            self.expect(self.fetch(), 1, "not inside its folder")


if __name__ == "__main__":
    junit.run()
