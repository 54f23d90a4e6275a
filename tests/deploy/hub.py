#!/usr/bin/env python3
"""A model hub that speaks what conclave-fetch needs of the Hugging Face Hub's HTTP API, for one
repository; on purpose it can cut connections and damage what it sends.

Usage: hub.py ADDRESS PORT FOLDER     serves FOLDER as demo/small_gpt_oss until it is killed
"""

import hashlib
import http.server
import json
import os
import sys
import urllib.parse

LFS_FROM = 1 << 20  # files of so many bytes are stored apart, and known by their SHA-256
PAGE = 5  # files in one answer


class Hub(http.server.ThreadingHTTPServer):
    """content_host: where files are redirected to, as HOST:PORT (another name of this server).
    token: wanted of who asks for anything but a file's content. ranges: whether it can begin in the
    middle. send_file(handler, name, data, begin): sends the rest of a file in our place."""

    daemon_threads = True

    def __init__(self, address, folder, repository="demo/small_gpt_oss", commit="c0ffee" * 6 + "1234"):
        self.repository, self.commit = repository, commit
        self.files = {}
        for parent, _, names in os.walk(folder):
            for name in names:
                path = os.path.join(parent, name)
                with open(path, "rb") as file:
                    self.files[os.path.relpath(path, folder)] = file.read()
        self.content_host = None
        self.token = None
        self.ranges = True
        self.send_file = None
        self.requests = []  # (path, headers)
        super().__init__(address, Handler)

    def handle_error(self, request, address):
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, address)

    def entries(self):
        folders = {os.path.dirname(path) for path in self.files} - {""}
        listed = [{"type": "directory", "path": folder} for folder in sorted(folders)]
        for path, data in sorted(self.files.items()):
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry = {"type": "file", "path": path, "size": len(data), "oid": blob}
            if len(data) >= LFS_FROM:
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data)}
            listed.append(entry)
        return listed


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        self.server.requests.append((path, dict(self.headers)))
        base, commit = self.server.repository, self.server.commit
        if path.startswith("/content/"):
            self.file(path.removeprefix("/content/"))
        elif self.server.token and self.headers["Authorization"] != f"Bearer {self.server.token}":
            self.answer(401, b"{}")
        elif path == f"/api/models/{base}/revision/main":
            self.answer(200, json.dumps({"sha": commit}).encode())
        elif path == f"/api/models/{base}/tree/{commit}":
            self.tree(url)
        elif path.startswith(f"/{base}/resolve/{commit}/"):
            name = path.removeprefix(f"/{base}/resolve/{commit}/")
            host = self.server.content_host or self.headers["Host"]
            self.answer(302, b"", Location=f"http://{host}/content/{urllib.parse.quote(name)}")
        else:
            self.answer(404, b"{}")

    def tree(self, url):
        begin = int(urllib.parse.parse_qs(url.query).get("cursor", ["0"])[0])
        entries = self.server.entries()
        headers = {}
        if begin + PAGE < len(entries):
            following = f"{url.path}?recursive=true&cursor={begin + PAGE}"
            headers["Link"] = f'<http://{self.headers["Host"]}{following}>; rel="next"'
        self.answer(200, json.dumps(entries[begin : begin + PAGE]).encode(), **headers)

    def file(self, name):
        data = self.server.files.get(name)
        if data is None:
            self.answer(404, b"")
            return
        begin = 0
        if self.server.ranges and "Range" in self.headers:
            begin = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        if self.server.send_file:
            self.server.send_file(self, name, data, begin)
        else:
            self.wfile.write(data[begin:])

    def answer(self, code, body, **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    Hub((sys.argv[1], int(sys.argv[2])), sys.argv[3]).serve_forever()
