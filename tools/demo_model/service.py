"""`conclave serve` on CPU workers, and its services as Python stubs."""

import json
import os
import signal
import subprocess
import sys
import tempfile

import grpc

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
sys.path.append(ROOT)  # where protos_and_services looks
generation, generation_services = grpc.protos_and_services("proto/conclave/v1/generation.proto")
classification, classification_services = grpc.protos_and_services(
    "proto/conclave/v1/classification.proto"
)
chat = grpc.protos("proto/conclave/v1/chat.proto")

HEADS = ("language", "pii")


class Server:
    """`conclave serve` until the end of the `with` block."""

    def __init__(self, conclave, model, workers):
        self.command = [conclave, "serve", "--model", model, "--workers", str(workers)]
        for name in HEADS:
            self.command += ["--head", f"{name}={os.path.join(model, 'head_' + name)}"]
        self.command += ["--device", "cpu", "--listen", "127.0.0.1:0"]

    def __enter__(self):
        self.logs = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            self.command + ["--log-dir", self.logs.name],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for line in self.process.stdout:
            if line.startswith("serving "):
                # Loopback never goes through a proxy.
                self.channel = grpc.insecure_channel(
                    line.split()[1], options=[("grpc.enable_http_proxy", 0)]
                )
                self.generation = generation_services.GenerationServiceStub(self.channel)
                self.classification = classification_services.ClassificationServiceStub(
                    self.channel
                )
                return self
        raise RuntimeError("the server did not come up")

    def __exit__(self, *_):
        self.channel.close()
        self.process.send_signal(signal.SIGINT)
        self.process.wait()
        self.logs.cleanup()


def to_conversation(drawn):
    """The chat.Conversation of one of conversations.py. All reasoning that it has is to be shown."""
    system = drawn["system"]
    conversation = chat.Conversation(
        model_identity=system["identity"],
        knowledge_cutoff=system["cutoff"],
        current_date=system["date"] or "",
        reasoning_effort=f"REASONING_EFFORT_{system['effort'].upper()}",
        reasoning_history=chat.REASONING_HISTORY_ALL,
    )
    if drawn["instructions"]:
        conversation.messages.add(role="DEVELOPER", content=drawn["instructions"])
    for tool in drawn["tools"]:
        conversation.tools.add(
            name=tool["name"],
            description=tool["description"],
            parameters_json=json.dumps(tool["parameters"], ensure_ascii=False),
        )
    for said in drawn["messages"]:
        message = conversation.messages.add(role=said["role"].upper())
        if "call" in said:
            message.tool_calls.add(
                name=said["call"]["name"], arguments=_written(said["call"]["arguments"])
            )
        message.reasoning = said.get("reasoning", "")
        message.content = _written(said["result"]) if "result" in said else said.get("content", "")
        message.name = said.get("name", "")
    return conversation


def _written(value):
    return json.dumps(value, ensure_ascii=False)
