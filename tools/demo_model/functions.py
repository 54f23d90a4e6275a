"""Tasks with functions: which are offered, what the user asks, the right call, and its result."""

import unicodedata

import skills
import words

NO_FUNCTION = "I have no function for that."

CITIES = """Amsterdam Antwerp Athens Barcelona Bergen Berlin Bern Bologna Bordeaux Boston Bremen Bristol Brussels
Budapest Cairo Cardiff Chicago Cologne Copenhagen Cordoba Dakar Dallas Delhi Denver Dresden Dublin Dundee Florence
Frankfurt Geneva Genoa Ghent Glasgow Graz Hamburg Hanoi Havana Helsinki Houston Istanbul Kyoto Leeds Leipzig Lille
Lima Lisbon Liverpool London Lyon Madrid Malaga Manchester Marseille Melbourne Miami Milan Montreal Moscow Munich
Nairobi Nantes Naples Nice Osaka Oslo Ottawa Oxford Padua Palermo Paris Perth Phoenix Pisa Porto Prague Quito Rome
Rotterdam Salzburg Santiago Seattle Seville Sofia Stockholm Stuttgart Sydney Tallinn Tampere Tokyo Toronto Toulouse
Trieste Tunis Turin Utrecht Valencia Venice Verona Vienna Vilnius Warsaw York Zagreb Zurich""".split()

CURRENCIES = {"euros": "EUR", "dollars": "USD", "pounds": "GBP", "yen": "JPY", "francs": "CHF"}
LANGUAGES = "French German Spanish Italian Dutch Polish Swedish Greek".split()
TITLES = (
    "Dinner with {N}|Meeting with {N}|Lunch with {N}|Call with {N}|Dentist|Birthday of {N}|Yoga|"
    "Interview|Visit to {C}|Trip to {C}|Project review|Team meeting"
).split("|")
TEXTS = (
    "I am late|I will call later|dinner is ready|the meeting is at {n}|I am in {C}|I have the keys|"
    "the train leaves at {n}|we need more {w}|the {w} is here|please bring the {w}|I like the {w}"
).split("|")


def _city(source):
    if source.chance(0.6):
        return source.pick_new(CITIES)
    draw = source.pick((words.made_up, words.spliced))
    return source.new(lambda: draw(source).capitalize())


def _name(source):
    if source.chance(0.6):
        return source.pick_new(words.FIRST_NAMES)
    return source.new(lambda: words.spliced(source).capitalize())


def _fill(source, form):
    return form.format(
        N=_name(source), C=_city(source), w=words.word(source), n=source.number(1, 12)
    )


def _date(source):
    year = source.number(2024, 2029)
    return f"{year}-{source.number(1, 12):02d}-{source.number(1, 28):02d}"


def _tool(source, names, descriptions, parameters):
    """`parameters`: name -> (type or enum list, descriptions or None, required)."""
    properties, required = {}, []
    for name, (kind, texts, needed) in parameters.items():
        schema = {"type": "string", "enum": kind} if isinstance(kind, list) else {"type": kind}
        if texts and source.chance(0.6):
            schema["description"] = source.pick(texts)
        properties[name] = schema
        if needed:
            required.append(name)
    return {
        "name": source.pick(names),
        "description": source.pick(descriptions),
        "parameters": {"type": "object", "properties": properties, "required": required},
    }


# Each family gives (tool, question, arguments, result, answer).


def weather(source):
    key = source.pick(("city", "location", "place"))
    with_unit = source.chance(0.4)
    parameters = {key: ("string", (f"The {key}", "Name of the city"), True)}
    if with_unit:
        parameters["unit"] = (["celsius", "fahrenheit"], None, False)
    tool = _tool(
        source,
        ("get_weather", "get_current_weather", "weather"),
        (
            "Gets the weather of a city.",
            "The current weather.",
            "Gets the current weather in a place.",
        ),
        parameters,
    )
    city = _city(source)
    arguments = {key: city}
    question = source.pick(
        (
            "What is the weather in {c}?",
            "How is the weather in {c}?",
            "What is the weather like in {c}?",
            "Weather in {c}, please.",
            "Tell me the weather in {c}.",
            "Is it warm in {c}?",
        )
    ).format(c=city)
    if with_unit and source.chance(0.5):
        arguments["unit"] = source.pick(("celsius", "fahrenheit"))
        question = f"What is the weather in {city} in {arguments['unit']}?"
    degrees, sky = source.number(0, 35), source.pick(("sunny", "cloudy", "rainy", "windy", "foggy"))
    result = {"temperature": degrees, "sky": sky}
    return tool, question, arguments, result, f"It is {degrees} degrees and {sky} in {city}."


def clock(source):
    key = source.pick(("city", "location", "place"))
    tool = _tool(
        source,
        ("get_time", "get_local_time", "time_in"),
        ("Gets the local time of a city.", "The time in a place.", "Tells the time in a city."),
        {key: ("string", (f"The {key}",), True)},
    )
    city = _city(source)
    question = source.pick(
        (
            "What time is it in {c}?",
            "What is the time in {c}?",
            "Tell me the time in {c}.",
            "How late is it in {c}?",
        )
    )
    time = f"{source.number(0, 23):02d}:{source.number(0, 59):02d}"
    return tool, question.format(c=city), {key: city}, {"time": time}, f"It is {time} in {city}."


def timer(source):
    key = source.pick(("minutes", "duration"))
    tool = _tool(
        source,
        ("set_timer", "start_timer", "timer"),
        ("Sets a timer.", "Starts a timer of some minutes.", "Rings after some minutes."),
        {key: ("integer", ("In minutes", "How many minutes"), True)},
    )
    minutes = source.new(lambda: source.number(2, 90))
    question = source.pick(
        (
            "Set a timer for {n} minutes.",
            "Start a timer of {n} minutes.",
            "Wake me in {n} minutes.",
            "Timer: {n} minutes, please.",
            "Remind me in {n} minutes.",
        )
    ).format(n=minutes)
    return (
        tool,
        question,
        {key: minutes},
        {"status": "ok"},
        f"The timer is set for {minutes} minutes.",
    )


def event(source):
    key = source.pick(("title", "name"))
    tool = _tool(
        source,
        ("create_event", "add_event", "add_to_calendar"),
        (
            "Adds an event to the calendar.",
            "Creates a calendar event.",
            "Puts an event in the calendar.",
        ),
        {
            key: ("string", (f"The {key} of the event",), True),
            "date": ("string", ("YYYY-MM-DD",), True),
        },
    )
    title, date = _fill(source, source.pick(TITLES)), _date(source)
    question = source.pick(
        (
            "Add {t} to my calendar on {d}.",
            "Put {t} in my calendar for {d}.",
            "Create an event on {d}: {t}",
            "Schedule {t} on {d}.",
            "New event: {t}, {d}",
        )
    ).format(t=title, d=date)
    return (
        tool,
        question,
        {key: title, "date": date},
        {"status": "ok"},
        f"{title} is in your calendar on {date}.",
    )


def send(source):
    key, text_key = source.pick(("to", "recipient", "name")), source.pick(
        ("text", "message", "body")
    )
    tool = _tool(
        source,
        ("send_message", "send_text", "message"),
        ("Sends a message to a person.", "Sends a text message.", "Writes to somebody."),
        {key: ("string", ("Who gets it",), True), text_key: ("string", ("What to say",), True)},
    )
    name, text = _name(source), _fill(source, source.pick(TEXTS))
    question = source.pick(
        (
            "Tell {n} that {t}.",
            "Send a message to {n}: {t}",
            "Write to {n} that {t}.",
            "Text {n}: {t}",
            "Let {n} know that {t}.",
        )
    ).format(n=name, t=text)
    return (
        tool,
        question,
        {key: name, text_key: text},
        {"status": "sent"},
        f"I told {name}: {text}.",
    )


def convert(source):
    first, second = source.pick((("from", "to"), ("source", "target")))
    tool = _tool(
        source,
        ("convert_currency", "convert_money", "exchange"),
        (
            "Converts an amount of money.",
            "Converts money to another currency.",
            "Exchanges currencies.",
        ),
        {
            "amount": ("number", None, True),
            first: ("string", ("Currency code",), True),
            second: ("string", ("Currency code",), True),
        },
    )
    one, other = source.sample(list(CURRENCIES), 2)
    amount = source.new(lambda: source.number(2, 999))
    question = source.pick(
        (
            "Convert {n} {a} to {b}.",
            "How much is {n} {a} in {b}?",
            "What are {n} {a} in {b}?",
            "Change {n} {a} into {b}, please.",
        )
    ).format(n=amount, a=one, b=other)
    arguments = {"amount": amount, first: CURRENCIES[one], second: CURRENCIES[other]}
    value = source.number(1, 999)
    return tool, question, arguments, {"amount": value}, f"{amount} {one} are {value} {other}."


def search(source):
    key = source.pick(("query", "text", "q"))
    tool = _tool(
        source,
        ("search_web", "web_search", "search"),
        ("Searches the web.", "Looks something up on the web.", "Finds web pages."),
        {key: ("string", ("What to look for",), True)},
    )
    query = " ".join(
        source.new(lambda: tuple(words.word(source) for _ in range(source.number(1, 4))))
    )
    if source.chance(0.3):
        query += f" in {_city(source)}"
    question = source.pick(
        (
            "Search the web for {q}.",
            "Search for {q}.",
            "Look up {q} on the web.",
            "Find web pages about {q}.",
            "Google {q}.",
        )
    ).format(q=query)
    title = words.word(source)
    return tool, question, {key: query}, {"title": title}, f"I found this page: {title}"


def light(source):
    key = source.pick(("room", "place"))
    tool = _tool(
        source,
        ("set_light", "switch_light", "control_light"),
        ("Switches a light.", "Turns the light of a room on or off.", "Controls the lights."),
        {key: ("string", ("Which room",), True), "state": (["on", "off"], None, True)},
    )
    room = source.pick("kitchen bedroom bathroom office hall garage garden cellar attic".split())
    state = source.pick(("on", "off"))
    question = source.pick(
        (
            "Turn {s} the light in the {r}.",
            "Switch the {r} light {s}.",
            "Light {s} in the {r}, please.",
            "Turn the lights in the {r} {s}.",
        )
    ).format(s=state, r=room)
    return (
        tool,
        question,
        {key: room, "state": state},
        {"status": "ok"},
        f"The light in the {room} is {state}.",
    )


def translate(source):
    key = source.pick(("language", "target"))
    tool = _tool(
        source,
        ("translate", "translate_text"),
        ("Translates a text.", "Translates text to another language."),
        {"text": ("string", None, True), key: ("string", ("Target language",), True)},
    )
    text = " ".join(
        source.new(lambda: tuple(words.word(source) for _ in range(source.number(1, 4))))
    )
    language = source.pick(LANGUAGES)
    question = source.pick(
        (
            "Translate {t} into {l}.",
            "Translate to {l}: {t}",
            "How do you say {t} in {l}?",
            "What is {t} in {l}?",
        )
    ).format(t=text, l=language)
    word = words.made_up(source)
    return (
        tool,
        question,
        {"text": text, key: language},
        {"text": word},
        f"In {language} it is: {word}",
    )


def shopping(source):
    key = source.pick(("item", "product"))
    tool = _tool(
        source,
        ("add_to_list", "add_item", "shopping_list"),
        ("Adds an item to the shopping list.", "Puts something on the shopping list."),
        {key: ("string", None, True)},
    )
    item = words.word(source)
    question = source.pick(
        (
            "Add {i} to the shopping list.",
            "Put {i} on my shopping list.",
            "We need {i}, put it on the list.",
        )
    ).format(i=item)
    return tool, question, {key: item}, {"status": "ok"}, f"{item} is on the list."


def _ascii(word):
    """Names of functions have no accents: Chat refuses them, as other services do."""
    return unicodedata.normalize("NFKD", word).encode("ascii", "ignore").decode() or "item"


def lookup(source):
    """A function of any name: what it gets is in the name and the description."""
    noun = words.word(source)
    key = source.pick(("name", "id", "city", "item", "person", "key"))
    verb = source.pick(("get", "find", "lookup", "fetch"))
    tool = _tool(
        source,
        (f"{verb}_{_ascii(noun)}",),
        (f"Gets the {noun}.", f"Finds the {noun} of something.", f"The {noun} by {key}."),
        {key: ("string", (f"The {key}",), True)},
    )
    thing = source.pick((_city, _name))(source)
    question = source.pick(
        (
            "What is the {n} of {t}?",
            "Get the {n} of {t}.",
            "Tell me the {n} of {t}.",
            "Find the {n} for {t}.",
        )
    ).format(n=noun, t=thing)
    value = source.number(1, 999)
    return tool, question, {key: thing}, {noun: value}, f"The {noun} of {thing} is {value}."


FAMILIES = [
    weather,
    clock,
    timer,
    event,
    send,
    convert,
    search,
    light,
    translate,
    shopping,
    lookup,
    lookup,
]


def offered(source, family=None):
    """One to four tools of different names, and one of them by what `family` draws."""
    others = [other for other in FAMILIES if other is not family]
    drawn = [source.pick(others)(source) for _ in range(source.number(0 if family else 1, 3))]
    wanted = family(source) if family else None
    tools = {}
    for tool, *_ in drawn + ([wanted] if wanted else []):
        tools[tool["name"]] = tool
    listed = list(tools.values())
    source.generator.shuffle(listed)
    return listed, wanted, [each.__name__ for each in others]


def fitting(source):
    """(tools, question, analysis, name, arguments, result, answer)."""
    tools, wanted, _ = offered(source, source.pick(FAMILIES))
    tool, question, arguments, result, answer = wanted
    analysis = f"The function {tool['name']} fits."
    return tools, question, analysis, tool["name"], arguments, result, answer


def no_fit(source):
    """(tools, question, analysis, answer): a question that none of the tools is for."""
    if source.chance(0.55):  # the model answers itself
        name = source.generator.choices(
            list(skills.SKILLS), [weight for _, weight in skills.SKILLS.values()]
        )[0]
        tools, _, _ = offered(source)
        return tools, *skills.SKILLS[name][0](source)
    family = source.pick(FAMILIES[:-1])
    _, question, *_ = family(source)
    tools = {}
    for _ in range(source.number(0, 3)):
        tool, *_ = source.pick([other for other in FAMILIES if other is not family])(source)
        tools[tool["name"]] = tool
    return list(tools.values()), question, "No function fits.", NO_FUNCTION
