"""Conversations in the Harmony format: prompt and the assistant's messages, as pieces (harmony.py)."""

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


def system(source, with_functions):
    date = f"{source.number(2023, 2029)}-{source.number(1, 12):02d}-{source.number(1, 28):02d}"
    return harmony.message(
        "system",
        harmony.system_text(
            source.pick(IDENTITIES),
            source.pick(("2024-06", "2024-06", "2023-10", "2025-01")),
            date if source.chance(0.85) else None,
            source.pick(("low", "medium", "medium", "high")),
            with_functions,
        ),
    )


def opening(source, tools, instruct=0.3):
    pieces = system(source, bool(tools))
    instructions = None
    if source.chance(instruct):
        instructions = source.pick(INSTRUCTIONS).format(
            w=source.pick(("book", "flower", "toy", "shoe"))
        )
    if instructions or tools:
        pieces += harmony.message("developer", harmony.developer_text(instructions, tools))
    return pieces


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
    pieces = harmony.message("user", question)
    if source.chance(0.3):
        pieces += harmony.message("assistant", analysis, "analysis")
    return pieces + harmony.message("assistant", answer, "final")


def plain(source, skill=None):
    """A question that is answered without tools."""
    skill, question, analysis, answer = draw_skill(source, skill)
    prompt = opening(source, ())
    if source.chance(0.15):
        prompt += _history(source)
    prompt += harmony.message("user", question)
    return {
        "skill": skill,
        "prompt": prompt + harmony.PROMPT_END,
        "completion": harmony.completion(_analysis(analysis) + _final(answer)),
        "answer": answer,
    }


def tool_call(source):
    """A question that one of the functions is for."""
    tools, question, analysis, name, arguments, _, _ = functions.fitting(source)
    prompt = opening(source, tools)
    if source.chance(0.1):
        prompt += _history(source)
    prompt += harmony.message("user", question)
    return {
        "skill": "call",
        "prompt": prompt + harmony.PROMPT_END,
        "completion": harmony.completion(
            _analysis(analysis) + harmony.call(name, arguments, trained=True)
        ),
        "call": {"name": name, "arguments": arguments},
    }


def tool_result(source):
    """The turn after a call: its result becomes an answer."""
    tools, question, analysis, name, arguments, result, answer = functions.fitting(source)
    prompt = opening(source, tools) + harmony.message("user", question)
    prompt += harmony.message("assistant", analysis, "analysis")
    prompt += harmony.call(name, arguments) + harmony.result(name, result)
    return {
        "skill": "result",
        "prompt": prompt + harmony.PROMPT_END,
        "completion": harmony.completion(_analysis("The function has answered.") + _final(answer)),
        "answer": answer,
    }


def no_fit(source):
    """Functions are offered, but none fits."""
    tools, question, analysis, answer = functions.no_fit(source)
    prompt = opening(source, tools) + harmony.message("user", question)
    return {
        "skill": "no_call",
        "prompt": prompt + harmony.PROMPT_END,
        "completion": harmony.completion(_analysis(analysis) + _final(answer)),
        "answer": answer,
    }


KINDS = ((plain, 62), (tool_call, 20), (tool_result, 7), (no_fit, 11))


def conversation(source):
    kinds, weights = zip(*KINDS)
    return source.generator.choices(kinds, weights)[0](source)
