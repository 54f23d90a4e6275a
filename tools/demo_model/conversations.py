"""Conversations with the assistant's next turn, the prompt and the turn also in the Harmony format as
pieces (harmony.py)."""

import functions
import harmony
import skills

IDENTITIES = (
    harmony.IDENTITY,
    harmony.IDENTITY,
    "You are a helpful assistant.",
    "You are a small model that runs on Conclave.",
    "You are an assistant for short tasks.",
)
INSTRUCTIONS = (
    "You are a helpful assistant.|Answer briefly.|Be polite and precise.|Help the user with small tasks.|"
    "Use the functions when they fit.|Always be friendly.|Think before you answer.|Keep it short.|"
    "You help people who learn to count and to spell.|Answer in English.|You are the assistant of a {w} shop."
).split("|")


def system(source):
    date = f"{source.number(2023, 2029)}-{source.number(1, 12):02d}-{source.number(1, 28):02d}"
    return {
        "identity": source.pick(IDENTITIES),
        "cutoff": source.pick(("2024-06", "2024-06", "2023-10", "2025-01")),
        "date": date if source.chance(0.85) else None,
        "effort": source.pick(("low", "medium", "medium", "high")),
    }


def opening(source, tools, instruct=0.3):
    """A conversation without messages (harmony.prompt)."""
    drawn = {"system": system(source), "instructions": None, "tools": tools, "messages": []}
    if source.chance(instruct):
        drawn["instructions"] = source.pick(INSTRUCTIONS).format(
            w=source.pick(("book", "flower", "toy", "shoe"))
        )
    return drawn


def _user(text):
    return {"role": "user", "content": text}


def _analysis(text):
    return harmony.message("assistant", text, "analysis", trained=True)


def _final(text, end="<|return|>"):
    return harmony.message("assistant", text, "final", end=end, trained=True)


def draw_skill(source, name=None):
    """(name, question, analysis, answer)."""
    if name is None:
        weights = [
            weight * (2 if source.stage == 2 and skill in skills.COPYING else 1)
            for skill, (_, weight) in skills.SKILLS.items()
        ]
        name = source.generator.choices(list(skills.SKILLS), weights)[0]
    return name, *skills.SKILLS[name][0](source)


def _history(source):
    """An earlier turn: its reasoning is dropped, or kept as it is between two final answers."""
    _, question, analysis, answer = draw_skill(source)
    reply = {"role": "assistant", "content": answer}
    if source.chance(0.3):
        reply["reasoning"] = analysis
    return [_user(question), reply]


def _case(skill, conversation, completion, **wanted):
    return {
        "skill": skill,
        "conversation": conversation,
        "prompt": harmony.prompt(conversation),
        "completion": harmony.completion(completion),
        **wanted,
    }


def plain(source, skill=None):
    """A question that is answered without tools."""
    skill, question, analysis, answer = draw_skill(source, skill)
    asked = opening(source, ())
    if source.chance(0.15):
        asked["messages"] += _history(source)
    asked["messages"].append(_user(question))
    return _case(skill, asked, _analysis(analysis) + _final(answer), answer=answer)


def tool_call(source):
    """A question that one of the functions is for."""
    tools, question, analysis, name, arguments, _, _ = functions.fitting(source)
    asked = opening(source, tools)
    if source.chance(0.1):
        asked["messages"] += _history(source)
    asked["messages"].append(_user(question))
    call = harmony.call(name, arguments, trained=True)
    wanted = {"name": name, "arguments": arguments}
    return _case("call", asked, _analysis(analysis) + call, call=wanted)


def tool_result(source):
    """The turn after a call: its result becomes an answer."""
    tools, question, analysis, name, arguments, result, answer = functions.fitting(source)
    asked = opening(source, tools)
    call = {"name": name, "arguments": arguments}
    asked["messages"] += [
        _user(question),
        {"role": "assistant", "reasoning": analysis, "call": call},
        {"role": "tool", "name": name, "result": result},
    ]
    said = _analysis("The function has answered.") + _final(answer)
    return _case("result", asked, said, answer=answer)


def no_fit(source):
    """Functions are offered, but none fits."""
    tools, question, analysis, answer = functions.no_fit(source)
    asked = opening(source, tools)
    asked["messages"].append(_user(question))
    return _case("no_call", asked, _analysis(analysis) + _final(answer), answer=answer)


KINDS = ((plain, 62), (tool_call, 20), (tool_result, 7), (no_fit, 11))


def conversation(source):
    kinds, weights = zip(*KINDS)
    return source.generator.choices(kinds, weights)[0](source)
