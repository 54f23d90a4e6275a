#!/usr/bin/env python3
"""Forwards connections to a service's address to one of its endpoints, as kube-proxy has the kernel
do. Without an endpoint connections are refused.

Usage: service_proxy.py ADDRESS PORT...
Lines of stdin: {"PORT": [[HOST, PORT]...]...}, the endpoints from then on; connections that stand
are left alone. One line of stdout for each, once it holds.
"""

import asyncio
import itertools
import json
import sys


class Port:
    def __init__(self, address, port):
        self.address, self.port = address, port
        self.server = None
        self.endpoints = []
        self.turn = itertools.count()

    async def set(self, endpoints):
        self.endpoints = endpoints
        if endpoints and self.server is None:
            self.server = await asyncio.start_server(self.accept, self.address, self.port)
        elif not endpoints and self.server is not None:
            self.server.close()
            self.server = None

    async def accept(self, reader, writer):
        host, port = self.endpoints[next(self.turn) % len(self.endpoints)]
        try:
            there = await asyncio.open_connection(host, port)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))


async def copy(reader, writer):
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        writer.transport.abort()
    writer.close()


async def main():
    ports = {port: Port(sys.argv[1], int(port)) for port in sys.argv[2:]}
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        for port, endpoints in json.loads(line).items():
            await ports[port].set(endpoints)
        print("set", flush=True)


asyncio.run(main())
