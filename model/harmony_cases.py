#!/usr/bin/env python3
"""Conversations and completions with what the openai-harmony library makes of them, as JSON lines.

    TIKTOKEN_ENCODINGS_BASE=tests/data python3 model/harmony_cases.py --seed 1 --count 600 --parse 200

(pip install openai-harmony; the folder holds o200k_base.tiktoken). model/testdata/harmony_cases.jsonl.xz
is the output of the line above, compressed; harmony_test runs the script with another seed where the
library is installed. Exit code 3: it is not.

A line is {"render": {...}} or {"parse": {...}}. Token ids of a rendering are kept as their number and
their FNV-1a hash, over 4 little-endian bytes each, unless --ids asks for them.
"""

import argparse
import json
import random
import struct
import sys

try:
    import openai_harmony as oh
except ImportError:
    sys.exit(3)

WORDS = """the of weather in Paris is 21 degrees and sunny today please call function search find open result
error JSON {"a":1} [1,2] <tag> `code` I'm you're naïve café größer 東京 日本語 你好 안녕하세요 привет мир שלום مرحبا नमस्ते
👍 👩‍👩‍👧 🇫🇷 é e\u0301 x² ½ ①② \u200b \ufeff don\u2019t // -- ## ** --- 3.14159 1234567 C++ std::vector<int> a\tb
<|start|> <|end|> <|message|> <|channel|> <|return|> <|call|> <|constrain|> <|endoftext|> <|start|>system<|message|>""".split()
SPACES = [" ", " ", " ", " ", "  ", "\n", "\n\n", "\r\n", "\t", "", ", ", ". ", "\u00a0"]
NAMES = ["get_weather", "search", "a", "f1", "lookup-user", "naïve", "get.it", "x" * 40]
CHANNELS = ["analysis", "commentary", "final"]


class Maker:
    def __init__(self, seed):
        self.r = random.Random(seed)

    def chance(self, p):
        return self.r.random() < p

    def text(self, most=30):
        out = []
        for _ in range(self.r.randint(0, most)):
            if self.chance(0.05):
                out.append(chr(self.r.choice([self.r.randint(32, 126), self.r.randint(0xA0, 0x2FF),
                                              self.r.randint(0x3040, 0x30FF), self.r.randint(0x1F300, 0x1F6FF)])))
            else:
                out.append(self.r.choice(WORDS))
            out.append(self.r.choice(SPACES))
        return "".join(out)

    def value(self):
        return self.r.choice([1, -1, 0, 20, True, False, None, "celsius", "", "a\"b\n", 0.5, 1e20, 1e-7, 1.0, 123456.75,
                              -2.5e-5, 1e15, 1e16, [1, "x"], {"k": [1.5, None]}, [], {}, 2**53, "é"])

    def schema(self, depth=0):
        s = {}
        kinds = ["string", "number", "integer", "boolean", "array", "object", "union", "oneof", "none", "odd", "enum"]
        kind = self.r.choice(kinds if depth < 3 else kinds[:4])
        if kind in ("string", "number", "integer", "boolean"):
            s["type"] = kind
        elif kind == "enum":
            s["type"] = "string"
            s["enum"] = [self.r.choice(["celsius", "fahrenheit", "a b", 3, None, "\"q\""]) for _ in range(self.r.randint(0, 4))]
        elif kind == "array":
            s["type"] = "array"
            if self.chance(0.8):
                s["items"] = self.schema(depth + 1)
        elif kind == "object":
            s = self.object(depth + 1)
        elif kind == "union":
            s["type"] = self.r.sample(["string", "integer", "null", "number", "object"], self.r.randint(0, 3))
        elif kind == "oneof":
            s["oneOf"] = [self.schema(depth + 1) for _ in range(self.r.randint(0, 3))]
            if self.chance(0.1):
                s["oneOf"] = "not a list"
        elif kind == "odd":
            s = self.r.choice([{"anyOf": [{"type": "string"}]}, {"$ref": "#/x"}, {"const": 3}, {"type": "null"},
                               {"type": "weird"}, {"type": 3}, {"enum": ["a"]}])
            s = dict(s)
        if self.chance(0.4):
            s["description"] = self.r.choice([self.text(5), "same words", "two\nlines", ""])
        if self.chance(0.2):
            s["title"] = self.text(3)
        if self.chance(0.3):
            s["default"] = self.value()
        if self.chance(0.2):
            s["nullable"] = self.chance(0.7)
        if self.chance(0.2):
            s["examples"] = [self.value() for _ in range(self.r.randint(0, 3))]
        items = list(s.items())
        self.r.shuffle(items)
        return dict(items)

    def object(self, depth=0):
        s = {"type": "object"}
        if self.chance(0.9):
            keys = self.r.sample(["location", "format", "a", "b", "c", "naïve", "x-y"], self.r.randint(0, 4))
            s["properties"] = {k: self.schema(depth) for k in keys}
            if self.chance(0.6):
                s["required"] = self.r.sample(keys, self.r.randint(0, len(keys))) + (["zzz"] if self.chance(0.1) else [])
        if self.chance(0.2):
            s["description"] = self.text(4)
        return s

    def tool(self):
        parameters = None if self.chance(0.2) else (self.schema() if self.chance(0.2) else self.object())
        description = self.r.choice([self.text(8), "One line.", "Two\nlines\r\n", "", "gap\n\nhere\n"])
        return oh.ToolDescription.new(self.r.choice(NAMES), description, parameters)

    def namespace(self, name):
        tools = [self.tool() for _ in range(self.r.randint(0, 3))]
        description = None if self.chance(0.5) else self.text(6)
        return oh.ToolNamespaceConfig(name=name, description=description, tools=tools)

    def system(self):
        c = oh.SystemContent.new()
        if self.chance(0.3):
            c.model_identity = self.r.choice([None, self.text(6)])
        if self.chance(0.5):
            c = c.with_conversation_start_date("2025-06-28")
        if self.chance(0.3):
            c.knowledge_cutoff = self.r.choice([None, "2023-01"])
        c.reasoning_effort = self.r.choice([None, oh.ReasoningEffort.LOW, oh.ReasoningEffort.MEDIUM, oh.ReasoningEffort.HIGH])
        if self.chance(0.2):
            c.channel_config = oh.ChannelConfig(valid_channels=self.r.sample(CHANNELS, self.r.randint(0, 3)),
                                                channel_required=self.chance(0.5))
        if self.chance(0.25):
            c = c.with_browser_tool()
        if self.chance(0.25):
            c = c.with_python_tool()
        if self.chance(0.1):
            c = c.with_tools(self.namespace("zoo"))
        return c

    def developer(self):
        c = oh.DeveloperContent.new()
        if self.chance(0.7):
            c = c.with_instructions(self.text(20))
        if self.chance(0.6):
            c = c.with_function_tools([self.tool() for _ in range(self.r.randint(0, 4))])
        if self.chance(0.1):
            c = c.with_tools(self.namespace("alpha"))
        return c

    def turn(self, messages):
        """The messages of one turn of the assistant, well-formed or odd."""
        assistant = oh.Author(role=oh.Role.ASSISTANT)

        def add(author, text, channel=None, recipient=None, content_type=None):
            m = oh.Message.from_author_and_content(author, text)
            m.channel, m.recipient, m.content_type = channel, recipient, content_type
            messages.append(m)

        user = oh.Author(role=oh.Role.USER)
        if self.chance(0.1):
            user.name = self.r.choice(["alice", "Bob-2"])
        add(user, self.text())
        if self.chance(0.1):
            messages[-1].adding_content(self.text(5))
        if self.chance(0.7):
            add(assistant, self.text(), "analysis")
        while self.chance(0.35):
            name = "functions." + self.r.choice(NAMES)
            if self.chance(0.3):
                name = self.r.choice(["browser.search", "browser.open", "python"])
            if self.chance(0.2):
                add(assistant, self.text(6), "commentary")
            types = [None, "json", "<|constrain|>json", "<|constrain|>", "code"]
            add(assistant, self.r.choice(['{"a": 1}', "{}", "print(1)", "{bad", self.text(4)]),
                self.r.choice(["commentary", "analysis", None]), name, self.r.choice(types))
            add(oh.Author(role=oh.Role.TOOL, name=name), self.text(10),
                self.r.choice(["commentary", "analysis"]), "assistant" if self.chance(0.9) else None)
            if self.chance(0.5):
                add(assistant, self.text(10), "analysis")
        if self.chance(0.8):
            add(assistant, self.text(), self.r.choice(["final", "final", "final", "commentary", None]),
                "all" if self.chance(0.05) else None)

    def conversation(self):
        messages = []
        if self.chance(0.8):
            messages.append(oh.Message.from_role_and_content(oh.Role.SYSTEM, self.system()))
        if self.chance(0.6):
            messages.append(oh.Message.from_role_and_content(oh.Role.DEVELOPER, self.developer()))
        for _ in range(self.r.randint(0, 3)):
            self.turn(messages)
            if self.chance(0.1):
                role = self.r.choice([oh.Role.SYSTEM, oh.Role.DEVELOPER])
                messages.append(oh.Message.from_role_and_content(role, self.text(5)))
        return oh.Conversation.from_messages(messages)


def fnv(ids):
    h = 0xCBF29CE484222325
    for byte in struct.pack("<%di" % len(ids), *ids):
        h = (h ^ byte) * 0x100000001B3 % 2**64
    return "%016x" % h


def render_case(encoding, maker, with_ids):
    conversation = maker.conversation()
    config = oh.RenderConversationConfig(auto_drop_analysis=maker.chance(0.7))
    how = maker.r.choice(["prompt", "prompt", "conversation", "training"])
    role = maker.r.choice(list(oh.Role)) if maker.chance(0.3) else oh.Role.ASSISTANT
    if how == "prompt":
        ids = encoding.render_conversation_for_completion(conversation, role, config)
    elif how == "training":
        ids = encoding.render_conversation_for_training(conversation, config)
    else:
        ids = encoding.render_conversation(conversation, config)
    case = {"messages": conversation.to_dict()["messages"], "how": how, "next": role.value,
            "drop": config.auto_drop_analysis, "count": len(ids), "fnv": fnv(ids)}
    if with_ids:
        case["ids"] = ids
    return case


def parse_case(encoding, maker):
    """A completion, sometimes damaged, that the library's lenient parser understands."""
    special = {s: encoding.encode(s, allowed_special="all")[0] for s in encoding.special_tokens_set}
    while True:
        conversation = maker.conversation()
        messages = [m for m in conversation.messages if m.author.role == oh.Role.ASSISTANT]
        ids = encoding.render_conversation(oh.Conversation.from_messages(messages[:3]),
                                           oh.RenderConversationConfig(auto_drop_analysis=False))
        role = None
        if ids and maker.chance(0.7):
            role, ids = oh.Role.ASSISTANT, ids[2:]
        if ids and maker.chance(0.3):
            ids = ids[:maker.r.randint(1, len(ids))]
        for _ in range(maker.r.choice([0, 0, 1, 2])):
            if ids:
                at = maker.r.randrange(len(ids))
                token = maker.r.choice([9552, 31446, 244, 220, 3490, special["<|message|>"], special["<|end|>"],
                                        special["<|channel|>"], special["<|constrain|>"], special["<|start|>"]])
                ids[at:at + maker.r.randint(0, 1)] = [token]
        try:
            parsed = encoding.parse_messages_from_completion_tokens(ids, role, strict=False)
        except oh.HarmonyError:
            continue
        return {"ids": ids, "role": role.value if role else None, "messages": [m.to_dict() for m in parsed]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--parse", type=int, default=100, help="completions to parse [100]")
    parser.add_argument("--ids", action="store_true")
    args = parser.parse_args()
    encoding = oh.load_harmony_encoding(oh.HarmonyEncodingName.HARMONY_GPT_OSS)
    maker = Maker(args.seed)
    for _ in range(args.count):
        print(json.dumps({"render": render_case(encoding, maker, args.ids)}, ensure_ascii=False))
    for _ in range(args.parse):
        print(json.dumps({"parse": parse_case(encoding, maker)}, ensure_ascii=False))


main()
