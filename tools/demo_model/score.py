"""What is right: completions of chat cases, spans and sentences; and a strict check of the format."""

import json
import re

import harmony

_RECIPIENT = re.compile(r" to=functions\.([A-Za-z0-9_]+)$")


class Malformed(Exception):
    pass


class _Reader:
    """Pieces of a completion: names of special tokens, and the text between them."""

    def __init__(self, tokenizer, ids):
        names = {tokenizer.token_to_id(name): name for name in harmony.SPECIALS}
        self.pieces, text = [], []
        for token in list(ids) + [None]:
            if token is not None and token not in names:
                text.append(token)
                continue
            if text:
                self.pieces.append(("text", tokenizer.decode(text)))
                text = []
            if token is not None:
                self.pieces.append((names[token], ""))
        self.at = 0

    def take(self, kind, optional=False):
        found = self.pieces[self.at] if self.at < len(self.pieces) else ("end", "")
        if found[0] == kind:
            self.at += 1
            return found[1]
        if optional:
            return None
        raise Malformed(f"{kind} is wanted, {found} is there")


def _header(reader, first):
    """(channel, function or None) of the message whose header begins after `assistant`."""
    text = reader.take("text", optional=True)
    if not first:
        if text is None or not text.startswith("assistant"):
            raise Malformed(f"the role is {text}")
        text = text[len("assistant") :] or None
    function = None
    if text is not None:
        match = _RECIPIENT.match(text)
        if match is None:
            raise Malformed(f"surplus in the header: {text}")
        function = match[1]
    reader.take("<|channel|>")
    channel = reader.take("text")
    if function is not None:
        if channel != "commentary ":
            raise Malformed(f"a call on channel {channel}")
        reader.take("<|constrain|>")
        if reader.take("text") != "json":
            raise Malformed("a call's content is not json")
    elif channel not in ("analysis", "final"):
        raise Malformed(f"channel {channel}")
    reader.take("<|message|>")
    return channel.strip(), function


def parse(tokenizer, ids):
    """The messages [(channel, function, text)] of a completion of `<|start|>assistant`, or Malformed."""
    reader = _Reader(tokenizer, ids)
    messages = []
    while True:
        channel, function = _header(reader, not messages)
        text = reader.take("text", optional=True) or ""
        messages.append((channel, function, text))
        if function is not None:
            reader.take("<|call|>")
            try:
                if not isinstance(json.loads(text), dict):
                    raise Malformed("the arguments are no object")
            except ValueError as error:
                raise Malformed(f"the arguments are not JSON: {error}") from error
            break
        if channel == "final":
            reader.take("<|return|>")
            break
        reader.take("<|end|>")
        reader.take("<|start|>")
    if reader.at != len(reader.pieces):
        raise Malformed("more after the end")
    return messages


def is_right(case, text, calls):
    """Of a turn that was well-formed: the text for the user and the calls [(name, arguments)]."""
    if "call" not in case:
        return not calls and text == case["answer"]
    if len(calls) != 1 or text:
        return False
    name, arguments = calls[0]
    return name == case["call"]["name"] and json.loads(arguments) == case["call"]["arguments"]


def judge(tokenizer, case, ids):
    """(right, well-formed, what was said)."""
    try:
        messages = parse(tokenizer, ids)
    except Malformed as error:
        return False, False, str(error)
    _, function, text = messages[-1]
    if function is not None:
        return is_right(case, "", [(function, text)]), True, f"{function} {text}"
    return is_right(case, text, []), True, text


def spans_of(labels, offsets, text):
    """Spans {(begin, end, kind)} of label names, joined as Transformers' "simple" aggregation does;
    offsets in characters, spaces before a span left out."""
    spans, previous = [], "O"
    for label, (begin, end) in zip(labels, offsets):
        kind = label[2:]
        if label != "O":
            if previous[2:] == kind and label[0] == "I":
                spans[-1][1] = end
            else:
                while begin < end and text[begin] == " ":
                    begin += 1
                spans.append([begin, end, kind])
        previous = label
    return {tuple(span) for span in spans}


def f1(pairs):
    """Of (wanted, found) sets of spans; the kind and both ends must be right."""
    right = sum(len(wanted & found) for wanted, found in pairs)
    total = sum(len(wanted) + len(found) for wanted, found in pairs)
    return 2 * right / total if total else 1.0


def summary(chat, pairs, sentences):
    """chat: (skill, right, well-formed); sentences: right or not."""
    skills = {}
    for skill, right, _ in chat:
        skills.setdefault(skill, []).append(right)
    share = lambda values: round(100 * sum(values) / len(values), 2)
    return {
        "chat_right": share([right for _, right, _ in chat]),
        "well_formed": share([formed for _, _, formed in chat]),
        "sequence_accuracy": share(sentences),
        "span_f1": round(f1(pairs), 4),
        "skills": {skill: share(values) for skill, values in sorted(skills.items())},
        "cases": {"chat": len(chat), "texts": len(pairs), "sentences": len(sentences)},
    }
