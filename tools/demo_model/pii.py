"""Texts with names, e-mail addresses, phone numbers and dates in them.

Attention looks back only, so what a span is must be known when it begins: the words before it say so
(a call or a number for phones, "on" or "by" for dates), and names begin with a capital letter.
"""

import words

LABELS = ["O"] + [f"{side}-{kind}" for kind in ("NAME", "EMAIL", "PHONE", "DATE") for side in "BI"]

MONTHS = (
    "January February March April May June July August September October November December".split()
)

# {N} name, {E} e-mail address, {P} phone number, {D} date; {c} a count and {w} a word, which are neither.
TEMPLATES = """My name is {N} and my phone number is {P}.
Please write to {E} before {D}.
{N} called on {D} and left the number {P}.
You can reach {N} at {E} or by phone at {P}.
The meeting with {N} is on {D}.
Contact: {N}, e-mail: {E}, phone: {P}
Dear {N}, thank you for your letter of {D}.
Send the {w} to {N} by {D}, please.
I met {N} and {N} on {D}.
The order of {c} {w} was sent to {N} on {D}.
Call {P} and ask for {N}.
My e-mail address is {E}.
{N} was born on {D}.
Write an e-mail to {E} or call {P}.
We have {c} {w} in room {c}.
The {w} costs {c} euros and the {w} costs {c}.
Is {N} there? My number is {P}.
On {D} we will see {N} in the {w}.
Tell {N} that the {w} is ready.
The invoice of {D} was paid by {N}.
New address of {N}: {E}
For questions ask {N} ({E}).
Phone: {P}, e-mail: {E}
The {w} of {N} is {c} years old.
There are {c} reasons to like the {w}.
{N} and {N} have a {w} since {D}.
Best regards, {N}
From: {E} To: {E} Date: {D}
Since {D} the number of {N} is {P}.
Your ticket {c} is valid until {D}.
This text has no {w} and no {w} in it.
Yesterday {N} bought {c} {w}.
The new {w} is better than the old {w}.
Ask {N} for the {w}, her number is {P}.
Please send {c} {w} to {N}, {E}.
{N} will be back on {D}, until then call {N} at {P}.""".split("\n")

HOSTS = "example mail post web office home inbox letter cloud planet".split()
ENDINGS = "com org net de fr es it nl eu io".split()


def _name(source):
    first, last = source.pick_new(words.FIRST_NAMES), source.pick_new(words.LAST_NAMES)
    return source.generator.choices((f"{first} {last}", first, last), (6, 3, 1))[0]


def _email(source):
    first, last = source.pick_new(words.FIRST_NAMES), source.pick_new(words.LAST_NAMES)
    user = source.pick(
        (
            f"{first}.{last}",
            f"{first}{source.number(1, 99)}",
            f"{first[0]}.{last}",
            first,
            f"{first}_{last}",
        )
    )
    host = source.pick(HOSTS) if source.chance(0.6) else words.word(source)
    return f"{user.lower()}@{host}.{source.pick(ENDINGS)}"


def _digits(source, count):
    return "".join(str(source.number(0, 9)) for _ in range(count))


def _phone(source):
    form = source.pick(
        (
            "+{2} {3} {4}",
            "({3}) {3}-{4}",
            "{3}-{4}",
            "0{2} {4} {3}",
            "+{2}-{3}-{3}-{3}",
            "0{3}/{6}",
            "{3} {3} {4}",
        )
    )
    for count in "2346":
        while f"{{{count}}}" in form:
            form = form.replace(f"{{{count}}}", _digits(source, int(count)), 1)
    return form


def _date(source):
    year, month, day = source.number(1950, 2032), source.number(1, 12), source.number(1, 28)
    name = MONTHS[month - 1]
    return source.pick(
        (
            f"{year}-{month:02d}-{day:02d}",
            f"{day:02d}/{month:02d}/{year}",
            f"{day} {name} {year}",
            f"{day}.{month}.{year}",
            f"{name} {day}",
            f"{day} {name}",
        )
    )


_DRAWS = {
    "N": ("NAME", _name),
    "E": ("EMAIL", _email),
    "P": ("PHONE", _phone),
    "D": ("DATE", _date),
}


def text(source):
    """(text, [(begin, end, kind)]), in characters."""
    form = source.pick(TEMPLATES)
    out, spans, rest = "", [], form
    while rest:
        at = rest.find("{")
        if at < 0:
            out += rest
            break
        out += rest[:at]
        slot, rest = rest[at + 1], rest[at + 3 :]
        if slot == "c":
            out += str(source.number(1, 999))
        elif slot == "w":
            out += words.word(source)
        else:
            kind, draw = _DRAWS[slot]
            value = draw(source)
            spans.append((len(out), len(out) + len(value), kind))
            out += value
    return out, spans
