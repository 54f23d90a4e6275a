"""Chat tasks without tools: (question, analysis, answer), each drawn from a words.Source."""

import words

OPPOSITES = """hot cold|big small|long short|fast slow|high low|old new|light dark|open closed|full empty|hard soft
rich poor|early late|wet dry|clean dirty|happy sad|strong weak|thick thin|wide narrow|near far|good bad
loud quiet|young old|day night|up down|left right|in out|black white|first last|start stop|true false
always never|buy sell|push pull|win lose|give take|begin end|above below|inside outside|sweet sour|smooth rough"""
OPPOSITE_PAIRS = [tuple(pair.split()) for line in OPPOSITES.split("\n") for pair in line.split("|")]

CAPITALS = dict(
    pair.split(":")
    for pair in """France:Paris Germany:Berlin Italy:Rome Spain:Madrid Portugal:Lisbon Austria:Vienna Greece:Athens
Poland:Warsaw Sweden:Stockholm Norway:Oslo Denmark:Copenhagen Finland:Helsinki Ireland:Dublin Hungary:Budapest
Japan:Tokyo China:Beijing India:Delhi Egypt:Cairo Kenya:Nairobi Peru:Lima Cuba:Havana Chile:Santiago
Canada:Ottawa Russia:Moscow Turkey:Ankara Ukraine:Kyiv Belgium:Brussels Croatia:Zagreb Iran:Tehran
Iraq:Baghdad Thailand:Bangkok Vietnam:Hanoi Nepal:Kathmandu Senegal:Dakar Ghana:Accra Tunisia:Tunis""".split()
)

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December".split()
)

TALK = [
    (
        ("Hello", "Hi", "Hello!", "Hi there!", "Good morning", "Good morning!", "Hey"),
        "Hello! How can I help you?",
    ),
    (("Thanks", "Thank you", "Thank you!", "Thanks a lot!", "Many thanks"), "You are welcome!"),
    (("Goodbye", "Bye", "Bye!", "See you later", "Good night"), "Goodbye!"),
    (
        ("How are you?", "How are you today?", "How is it going?"),
        "I am fine, thank you. How can I help you?",
    ),
    (
        (
            "What can you do?",
            "How can you help me?",
            "What are you good at?",
            "What can I ask you?",
        ),
        "I can do small sums, sort and count, spell words, and call your functions.",
    ),
    (
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Are you a person?",
            "Tell me about yourself.",
        ),
        "I am a very small language model, a demonstration of Conclave.",
    ),
]

UNKNOWN = "I do not know that. I am a very small model."
UNKNOWN_QUESTIONS = (
    "Who won the match yesterday?|Why is the sky blue?|How do I fix my car?|Write a poem about {w}.|"
    "Who wrote the book about {w}?|Explain {w} to me.|What happened in 19{n}?|How old is {N}?|Tell me a joke.|"
    "What is the meaning of life?|Where does {N} live?|How do I cook {w}?|Is {N} taller than {M}?|"
    "What is the best {w}?|Give me advice about {w}.|What do you think about {w}?|Who is {N}?|"
    "When was {N} born?|Why do people like {w}?|How far is the moon?"
).split("|")


def _ask(source, *forms):
    return source.pick(forms)


def add(source):
    a, b = source.new(lambda: (source.number(0, 99), source.number(0, 99)))
    ones = a % 10 + b % 10
    steps = f"{a % 10} + {b % 10} = {ones}"
    carry = ones // 10
    steps += f", write {ones % 10}, carry {carry}. "
    tens = a // 10 + b // 10 + carry
    steps += f"{a // 10} + {b // 10} + {carry} = {tens}. "
    form = _ask(
        source,
        "What is {a} + {b}?",
        "{a} + {b}",
        "Add {a} and {b}.",
        "What is {a} plus {b}?",
        "{a}+{b}=?",
        "Compute {a} + {b}.",
        "How much is {a} + {b}?",
        "What is the sum of {a} and {b}?",
        "Calculate {a} + {b}",
    )
    return form.format(a=a, b=b), f"{a} + {b}: {steps}The sum is {a + b}.", f"{a} + {b} = {a + b}"


def subtract(source):
    draw = lambda: sorted((source.number(0, 99), source.number(0, 99)), reverse=True)
    a, b = source.new(lambda: tuple(draw()))
    ones, tens = a % 10 - b % 10, a // 10 - b // 10
    if ones < 0:
        steps = f"{a % 10} is less than {b % 10}, borrow. {a % 10 + 10} - {b % 10} = {ones + 10}. "
        steps += f"{a // 10} - 1 - {b // 10} = {tens - 1}. "
    else:
        steps = f"{a % 10} - {b % 10} = {ones}. {a // 10} - {b // 10} = {tens}. "
    form = _ask(
        source,
        "What is {a} - {b}?",
        "{a} - {b}",
        "Subtract {b} from {a}.",
        "What is {a} minus {b}?",
        "{a}-{b}=?",
        "Compute {a} - {b}.",
        "How much is {a} - {b}?",
        "Take {b} from {a}.",
        "Calculate {a} - {b}",
    )
    return form.format(a=a, b=b), f"{a} - {b}: {steps}The rest is {a - b}.", f"{a} - {b} = {a - b}"


def multiply(source):
    if source.chance(0.4):  # the table is learnt by heart: nothing of it is held out
        a, b = source.number(0, 10), source.number(0, 10)
        steps = f"I know that {a} x {b} = {a * b}."
    else:
        a, b = source.new(lambda: (source.number(11, 99), source.number(2, 9)))
        ones, tens = a % 10 * b, a // 10 * b
        steps = f"{a} x {b}: {a % 10} x {b} = {ones}. {a // 10} x {b} = {tens}, so {tens}0. "
        steps += f"{tens}0 + {ones} = {a * b}."
    form = _ask(
        source,
        "What is {a} x {b}?",
        "{a} x {b}",
        "Multiply {a} by {b}.",
        "What is {a} times {b}?",
        "{a}*{b}=?",
        "Compute {a} * {b}.",
        "How much is {a} times {b}?",
        "What is the product of {a} and {b}?",
    )
    return form.format(a=a, b=b), steps, f"{a} x {b} = {a * b}"


def sort_numbers(source):
    draw = lambda: tuple(source.sample(range(100), source.number(3, 5)))
    numbers = source.new(draw)
    falling = source.chance(0.3)
    ordered = sorted(numbers, reverse=falling)
    listed, answer = ", ".join(map(str, numbers)), ", ".join(map(str, ordered))
    if falling:
        form = _ask(
            source,
            "Sort these numbers from large to small: {l}",
            "Sort from largest to smallest: {l}.",
            "Put these numbers in falling order: {l}",
        )
        return form.format(l=listed), f"The largest comes first: {answer}.", answer
    form = _ask(
        source,
        "Sort these numbers: {l}",
        "Sort {l}.",
        "Sort from small to large: {l}",
        "Put these numbers in order: {l}",
        "Order these numbers: {l}.",
        "Please sort: {l}",
    )
    return form.format(l=listed), f"The smallest comes first: {answer}.", answer


def extreme(source):
    numbers = source.new(lambda: tuple(source.sample(range(100), source.number(2, 5))))
    large = source.chance(0.5)
    listed = ", ".join(map(str, numbers[:-1])) + f" or {numbers[-1]}"
    kind = source.pick(("largest", "biggest", "highest") if large else ("smallest", "lowest"))
    answer = str((max if large else min)(numbers))
    form = _ask(
        source,
        "Which is the {k}: {l}?",
        "Which number is the {k}: {l}?",
        "What is the {k} of {l}?",
        "Find the {k} number: {l}.",
    )
    ordered = ", ".join(map(str, sorted(numbers, reverse=large)))
    return form.format(k=kind, l=listed), f"In order: {ordered}. The {kind} is {answer}.", answer


def compare(source):
    a, b = source.new(lambda: tuple(source.sample(range(100), 2)))
    more = source.chance(0.5)
    kind = source.pick(("larger", "bigger", "greater", "more") if more else ("smaller", "less"))
    asked, real = "more" if more else "less", "more" if a > b else "less"
    answer = "Yes" if asked == real else "No"
    steps = f"Is it {asked}? {a} is {real} than {b}, so {answer.lower()}."
    return f"Is {a} {kind} than {b}?", steps, answer


def parity(source):
    a = source.new(lambda: source.number(0, 999))
    asked, real = source.pick(("even", "odd")), "odd" if a % 2 else "even"
    answer = "Yes" if asked == real else "No"
    question = f"Is {a} {asked}?" if source.chance(0.6) else f"Is {a} an {asked} number?"
    steps = (
        f"Is it {asked}? The last digit of {a} is {a % 10}, so it is {real}, so {answer.lower()}."
    )
    return question, steps, f"{answer}, {a} is {real}."


def neighbour(source):
    a = source.new(lambda: source.number(1, 198))
    after = source.chance(0.5)
    b = a + 1 if after else a - 1
    form = _ask(
        source,
        "What number comes {d} {a}?",
        "Which number is {d} {a}?",
        "What comes {d} {a}?",
        "Count: what is {d} {a}?",
    )
    form = form.format(d="after" if after else "before", a=a)
    return form, f"{a} {'+' if after else '-'} 1 = {b}.", str(b)


def _items(source, low, high):
    return source.new(lambda: tuple(words.word(source) for _ in range(source.number(low, high))))


def _numbered(items):
    return ", ".join(f"{index} {item}" for index, item in items)


def count_items(source):
    items = _items(source, 2, 9)
    form = _ask(
        source,
        "How many items are in this list: {l}?",
        "Count the items: {l}",
        "How many words: {l}?",
        "How many things are there: {l}?",
        "Count these: {l}.",
    )
    steps = _numbered(enumerate(items, 1))
    return form.format(l=", ".join(items)), f"{steps}.", str(len(items))


def first_last(source):
    items = _items(source, 2, 7)
    place = source.pick(("first", "last", "second"))
    answer = items[{"first": 0, "last": -1, "second": 1}[place]]
    text = " ".join(items)
    form = _ask(
        source,
        "What is the {p} word of: {t}",
        "Which word is {p}: {t}",
        "Give me the {p} word: {t}",
        "The {p} word of this, please: {t}",
    )
    steps = _numbered(enumerate(items, 1))
    return form.format(p=place, t=text), f"{steps}. The {place} is {answer}.", answer


def reverse_words(source):
    items = _items(source, 2, 6)
    answer = " ".join(reversed(items))
    form = _ask(
        source,
        "Reverse the order of these words: {t}",
        "Write these words in reverse order: {t}",
        "Turn the order of the words around: {t}",
    )
    steps = list(enumerate(items, 1))
    steps = f"{_numbered(steps)}. From the end: {_numbered(reversed(steps))}."
    return form.format(t=" ".join(items)), steps, answer


def repeat(source):
    text = " ".join(_items(source, 2, 8))
    form = _ask(
        source, "Repeat: {t}", "Repeat after me: {t}", "Say this: {t}", "Please repeat this: {t}"
    )
    return form.format(t=text), "I repeat the words.", text


def spell(source):
    word = words.word(source)
    while not word.isascii():
        word = words.word(source)
    letters = "-".join(word)
    kind = source.pick(("spell", "reverse", "upper", "letters"))
    if kind == "spell":
        form = _ask(
            source, "Spell {w}.", "Spell the word {w}.", "How do you spell {w}?", "Spell: {w}"
        )
        return form.format(w=word), f"The letters of {word}.", letters
    if kind == "reverse":
        form = _ask(
            source,
            "Spell {w} backwards.",
            "Spell the word {w} backwards.",
            "Reverse the letters of {w}.",
            "Spell {w} from the end.",
        )
        return form.format(w=word), f"{letters}, now from the end.", letters[::-1]
    if kind == "upper":
        form = _ask(
            source,
            "Write {w} in capital letters.",
            "Write {w} in upper case.",
            "Make {w} upper case.",
            "Capitalize all letters of {w}.",
        )
        return form.format(w=word), f"{letters}, in capitals.", word.upper()
    form = _ask(
        source,
        "How many letters are in {w}?",
        "How many letters does {w} have?",
        "Count the letters of {w}.",
    )
    steps = _numbered(enumerate(word, 1))
    return form.format(w=word), f"{steps}.", str(len(word))


def calendar(source):
    names, kind = source.pick(((DAYS, "day"), (MONTHS, "month")))
    index = source.number(0, len(names) - 1)
    after = source.chance(0.6)
    answer = names[(index + (1 if after else -1)) % len(names)]
    side = "after" if after else "before"
    form = _ask(
        source,
        "What {k} comes {s} {n}?",
        "Which {k} is {s} {n}?",
        "The {k} {s} {n}?",
        "Name the {k} {s} {n}.",
    )
    question = form.format(k=kind, s=side, n=names[index])
    return question, f"{answer} comes {side} {names[index]}.", answer


def opposite(source):
    a, b = source.pick(OPPOSITE_PAIRS)
    form = _ask(
        source,
        "What is the opposite of {a}?",
        "Opposite of {a}?",
        "Give me the opposite of {a}.",
        "Name the opposite of {a}.",
        "Which word is the opposite of {a}?",
    )
    return form.format(a=a), f"The opposite of {a} is {b}.", b


def capital(source):
    country, city = source.pick(list(CAPITALS.items()))
    if source.chance(0.25):
        question = f"Which country has the capital {city}?"
        return question, f"{city} is the capital of {country}.", country
    form = _ask(
        source,
        "What is the capital of {c}?",
        "Capital of {c}?",
        "Name the capital of {c}.",
        "Which city is the capital of {c}?",
        "Tell me the capital of {c}.",
    )
    return form.format(c=country), f"The capital of {country} is {city}.", city


def talk(source):
    questions, answer = source.pick(TALK)
    return source.pick(questions), "The user makes conversation.", answer


def unknown(source):
    form = source.pick(UNKNOWN_QUESTIONS)
    question = form.format(
        w=source.pick(words.ENGLISH),
        n=source.number(10, 99),
        N=source.pick(words.FIRST_NAMES),
        M=source.pick(words.LAST_NAMES),
    )
    return question, "This is not something I know.", UNKNOWN


# What stage 2 of the training has twice as much of.
COPYING = ("count", "first_last", "reverse_words", "repeat", "spell")

# name -> (task, weight)
SKILLS = {
    "add": (add, 3),
    "subtract": (subtract, 3),
    "multiply": (multiply, 4),
    "sort": (sort_numbers, 6),
    "extreme": (extreme, 3),
    "compare": (compare, 3),
    "parity": (parity, 3),
    "neighbour": (neighbour, 2),
    "count": (count_items, 4),
    "first_last": (first_last, 4),
    "reverse_words": (reverse_words, 4),
    "repeat": (repeat, 4),
    "spell": (spell, 10),
    "calendar": (calendar, 1.5),
    "opposite": (opposite, 1.5),
    "capital": (capital, 1.5),
    "talk": (talk, 1),
    "unknown": (unknown, 1.5),
}
