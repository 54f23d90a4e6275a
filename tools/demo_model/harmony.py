"""Renders conversations in the Harmony format, as openai-harmony does, to pieces.

A piece is (text, trained): text that is tokenized on its own, or the name of a special token, and
whether the model is to learn to write it.
"""

import json

SPECIALS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|return|>",
    "<|constrain|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|call|>",
)
IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."


def system_text(identity=IDENTITY, cutoff="2024-06", date=None, effort="medium", functions=False):
    head = f"{identity}\nKnowledge cutoff: {cutoff}"
    if date:
        head += f"\nCurrent date: {date}"
    channels = (
        "# Valid channels: analysis, commentary, final. Channel must be included for every message."
    )
    if functions:
        channels += "\nCalls to these tools must go to the commentary channel: 'functions'."
    return "\n\n".join((head, f"Reasoning: {effort}", channels))


def _type(schema):
    if schema["type"] == "integer":
        return "number"
    if "enum" in schema:
        return " | ".join(f'"{value}"' for value in schema["enum"])
    return schema["type"]


def _function(tool):
    """Of flat objects: all that the demo's tools have."""
    lines = [f"// {line}" for line in tool["description"].split("\n")]
    properties = tool["parameters"]["properties"]
    lines.append(f"type {tool['name']} = (_: {{")
    for name, schema in properties.items():
        if "description" in schema:
            lines.append(f"// {schema['description']}")
        optional = "" if name in tool["parameters"]["required"] else "?"
        lines.append(f"{name}{optional}: {_type(schema)},")
    lines.append("}) => any;\n")
    return lines


def developer_text(instructions=None, tools=()):
    sections = []
    if instructions:
        sections += ["# Instructions", instructions]
    if tools:
        lines = ["## functions\n", "namespace functions {\n"]
        for tool in tools:
            lines += _function(tool)
        lines.append("} // namespace functions")
        sections += ["# Tools", "\n".join(lines)]
    return "\n\n".join(sections)


def message(role, text, channel=None, recipient=None, content=None, end="<|end|>", trained=False):
    """`<|start|>role` and a recipient are only trained as a whole: a prompt ends after them."""
    pieces = [("<|start|>", trained), (role, trained)]
    if recipient:
        pieces.append((f" to={recipient}", trained))
    if channel:
        pieces += [("<|channel|>", trained), (channel, trained)]
    if content == "json":
        pieces += [(" ", trained), ("<|constrain|>", trained), ("json", trained)]
    pieces += [("<|message|>", trained)]
    if text:
        pieces.append((text, trained))
    pieces.append((end, trained))
    return pieces


def call(name, arguments, trained=False):
    return message(
        "assistant",
        json.dumps(arguments, ensure_ascii=False),
        "commentary",
        f"functions.{name}",
        "json",
        "<|call|>",
        trained,
    )


def result(name, value):
    text = json.dumps(value, ensure_ascii=False)
    return message(f"functions.{name}", text, "commentary", "assistant")


def prompt(conversation):
    """Of {"system", "instructions", "tools", "messages"}, up to the assistant's next turn. A message:

    {"role": "user", "content"}, {"role": "tool", "name", "result"},
    {"role": "assistant", "reasoning" or none, "content" or "call": {"name", "arguments"}}
    """
    instructions, tools = conversation["instructions"], conversation["tools"]
    pieces = message("system", system_text(**conversation["system"], functions=bool(tools)))
    if instructions or tools:
        pieces += message("developer", developer_text(instructions, tools))
    for said in conversation["messages"]:
        if said["role"] == "user":
            pieces += message("user", said["content"])
        elif said["role"] == "tool":
            pieces += result(said["name"], said["result"])
        else:
            if "reasoning" in said:
                pieces += message("assistant", said["reasoning"], "analysis")
            if "call" in said:
                pieces += call(**said["call"])
            else:
                pieces += message("assistant", said["content"], "final")
    return pieces + [("<|start|>", False), ("assistant", False)]


def completion(pieces):
    """Of trained messages, without the `<|start|>assistant` that the prompt ends with."""
    return [(text, True) for text, _ in pieces[2:]]
