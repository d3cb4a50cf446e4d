"""Greetings, jokes, stories, small knowledge (capitals, opposites, colours) and small sums."""

from collections.abc import Callable

from .exchange import Exchange, said
from .words import ANIMALS, Rng, name, noisy, pool, word

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid",
    "Portugal": "Lisbon", "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi",
    "Egypt": "Cairo", "Kenya": "Nairobi", "Canada": "Ottawa", "Mexico": "Mexico City",
    "Brazil": "Brasilia", "Peru": "Lima", "Chile": "Santiago", "Norway": "Oslo",
    "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen", "Greece": "Athens",
    "Poland": "Warsaw", "Austria": "Vienna", "Ireland": "Dublin", "Turkey": "Ankara",
    "Cuba": "Havana", "England": "London", "Russia": "Moscow", "Australia": "Canberra",
    "Switzerland": "Bern", "Belgium": "Brussels", "the Netherlands": "Amsterdam",
    "the United States": "Washington", "the USA": "Washington", "Argentina": "Buenos Aires",
    "South Korea": "Seoul", "Thailand": "Bangkok",
}  # fmt: skip
OPPOSITES = dict(
    pair.split("/")
    for pair in pool(
        "hot/cold big/small fast/slow up/down happy/sad old/new light/dark early/late open/closed "
        "full/empty hard/soft loud/quiet good/bad left/right day/night rich/poor wet/dry high/low "
        "long/short strong/weak clean/dirty black/white yes/no near/far"
    )
)
OPPOSITES |= {b: a for a, b in OPPOSITES.items() if b not in OPPOSITES}
COLOR_OF = {
    "the sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red",
    "a banana": "yellow", "an orange": "orange", "milk": "white", "a leaf": "green",
    "chocolate": "brown", "the sun": "yellow", "a tomato": "red", "the sea": "blue",
    "an elephant": "grey", "a lemon": "yellow", "a strawberry": "red",
}  # fmt: skip
NUMBERS = pool("zero one two three four five six seven eight nine ten eleven twelve")
DAYS = pool("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
JOKES = {
    "": "Why did the model cross the network? To get to the other side of the router.",
    "computers": "Why was the computer cold? It left its windows open.",
    "cats": "What is a cat's favorite color? Purr-ple.",
    "numbers": "Why was six afraid of seven? Because seven ate nine.",
    "dogs": "What do you call a dog that does magic? A labracadabrador.",
    "programmers": "Why do programmers like the dark? Because light attracts bugs.",
}
LISTS = {
    "fruits": ["apple", "banana", "orange"],
    "animals": ["dog", "cat", "horse"],
    "colors": ["red", "green", "blue"],
    "cities": ["Paris", "London", "Tokyo"],
    "planets": ["Mercury", "Venus", "Earth"],
    "vegetables": ["carrot", "potato", "onion"],
    "drinks": ["water", "tea", "coffee"],
    "countries": ["France", "Japan", "Brazil"],
}
FIXED: list[tuple[str, str, str]] = [
    ("says hello", "Hello! How can I help you today?",
     "hello|hi|hey|hi there|hello there|good morning|good evening|good afternoon|hey there|yo|"
     "hello!|hi!|greetings|hello world|hallo|howdy|hiya"),
    ("asks how I am", "I am fine, thank you. How can I help you?",
     "how are you?|how are you doing?|how is it going?|how do you feel?|what's up?|are you ok?|"
     "how are you today?|hello, how are you?|hi, how are you?|how's it going|sup"),
    ("says thanks", "You are welcome!",
     "thanks|thank you|thank you very much|thanks a lot|thx|great, thanks|perfect, thank you|"
     "nice, thanks!|cheers|many thanks|ok thanks"),
    ("says goodbye", "Goodbye! Have a nice day.",
     "bye|goodbye|see you|see you later|bye bye|good night|take care|cya|have a nice day"),
    ("is pleased", "I am glad to hear that!",
     "great|nice|cool|awesome|well done|good job|very good|that is great|perfect|wonderful|"
     "you are great|i like you|good bot"),
    ("agrees", "All right. What would you like to know?",
     "ok|okay|yes|sure|fine|all right|yes please|go on|continue"),
    ("disagrees", "All right. Ask me something else.",
     "no|nope|no thanks|never mind|stop|forget it"),
    ("asks for the time or date", "I cannot see a clock. Ask a model with a time tool.",
     "what time is it?|what is the date?|what day is it today?|what is today's date?|"
     "tell me the time|which year is it?|current time?"),
    ("asks for the weather", "I cannot check the weather without a tool.",
     "what is the weather?|how is the weather today?|will it rain tomorrow?|is it sunny?|"
     "what's the weather like?|do i need an umbrella?|weather forecast"),
    ("tests me", "The test works. I can hear you.",
     "test|testing|this is a test|is this working?|can you hear me?|are you there?|does it work?|"
     "test 123|just testing|say something|write something"),
    ("says ping", "pong", "ping|ping?|ping!"),
    ("wants a haiku", "A small model wakes.\nIt hums on your own machine.\nThe answer arrives.",
     "write a haiku|write a haiku about mlx|a haiku please|haiku|tell me a haiku"),
    ("wants the alphabet",
     "a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w, x, y, z.",
     "say the alphabet|what is the alphabet?|recite the alphabet|the alphabet please"),
    ("asks for the days", "The days are " + ", ".join(DAYS) + ".",
     "what are the days of the week?|name the days of the week|list the days of the week"),
    ("asks for the meaning of life", "42, they say. I am too small to know.",
     "what is the meaning of life?|the meaning of life?|meaning of life"),
]  # fmt: skip


def _fixed(r: Rng) -> Exchange:
    topic, answer, asked = r.choice(FIXED)
    return said("talk", noisy(r, r.choice(asked.split("|"))), answer, f"The user {topic}.")


def _capital(r: Rng) -> Exchange:
    country = r.choice(list(CAPITALS))
    question = r.choice(
        ["What is the capital of {}?", "Tell me the capital of {}.", "capital of {}?",
         "What's the capital city of {}?", "Which city is the capital of {}?",
         "Do you know the capital of {}?", "Name the capital of {}."]
    ).format(country)  # fmt: skip
    answer = f"The capital of {country} is {CAPITALS[country]}."
    return said("talk", noisy(r, question), answer, f"The user asks for the capital of {country}.")


def _opposite(r: Rng) -> Exchange:
    w = r.choice(list(OPPOSITES))
    question = r.choice(
        ["What is the opposite of {}?", "opposite of {}", "Tell me the opposite of {}.",
         "What's the contrary of {}?"]
    ).format(w)  # fmt: skip
    answer = f"The opposite of {w} is {OPPOSITES[w]}."
    return said("talk", noisy(r, question), answer, f"The user asks for the opposite of {w}.")


def _color(r: Rng) -> Exchange:
    w = r.choice(list(COLOR_OF))
    question = r.choice(
        [
            "What color is {}?",
            "What is the color of {}?",
            "Which colour has {}?",
            "What colour is {}?",
        ]
    ).format(w)
    answer = f"The color of {w} is {COLOR_OF[w]}."
    return said("talk", noisy(r, question), answer, f"The user asks for the color of {w}.")


def _next(r: Rng) -> Exchange:
    row = r.choice([NUMBERS, DAYS])
    i = r.randrange(len(row) - 1)
    question = r.choice(["What comes after {}?", "What is after {}?", "Which one follows {}?"])
    answer = f"After {row[i]} comes {row[i + 1]}."
    return said(
        "talk", noisy(r, question.format(row[i])), answer, f"I look for what follows {row[i]}."
    )


def _sum(r: Rng) -> Exchange:
    if r.random() < 0.12:
        a, b, sign = r.randint(13, 9999), r.randint(2, 9999), r.choice("+-*/")
        answer = "That sum is too big for me. Try a real model, or give me a tool."
    elif r.random() < 0.7:
        a, b, sign = r.randint(0, 12), r.randint(0, 12), "+"
        answer = f"{a} plus {b} is {a + b}."
    else:
        a, b, sign = r.randint(1, 10), r.randint(1, 10), "*"
        answer = f"{a} times {b} is {a * b}."
    spoken = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}[sign]
    question = r.choice(
        [f"What is {a} {spoken} {b}?", f"{a} {sign} {b} = ?", f"What is {a}{sign}{b}?",
         f"{a}{sign}{b}", f"How much is {a} {spoken} {b}?", f"calculate {a} {sign} {b}"]
    )  # fmt: skip
    return said("talk", question, answer, f"I work out {a} {spoken} {b}.")


def _joke(r: Rng) -> Exchange:
    topic = r.choice(list(JOKES))
    ask = r.choice(["Tell me a joke{}.", "Do you know a joke{}?", "A joke{} please", "joke{}"])
    question = ask.format(f" about {topic}" if topic else "")
    return said("talk", noisy(r, question), JOKES[topic], "The user wants a joke.")


def _story(r: Rng) -> Exchange:
    a = r.choice(ANIMALS) if r.random() < 0.6 else word(r)
    who = name(r)
    named = r.random() < 0.4
    who = who if named else "Pip"
    long = r.random() < 0.3
    kind = "long story" if long else r.choice(["story", "short story", "tale"])
    ask = r.choice(["Tell me a {} about a {}", "Write a {} about a {}", "Make up a {} about a {}"])
    question = ask.format(kind, a) + (f" named {who}." if named else ".")
    parts = [
        f"Once upon a time there was a {a} named {who}.",
        f"{who} lived in a small house by the river.",
        f"One day {who} found a golden key under a tree.",
    ]
    if long:
        parts += [
            "The key opened an old door in the forest.",
            f"Behind the door {who} saw a garden full of light.",
            f"An owl sat there and said: Welcome, little {a}.",
            "They talked until the moon came up.",
        ]
    parts.append(f"The {a} was very happy. The end.")
    return said("talk", question, " ".join(parts), f"The user wants a {kind} about a {a}.")


def _poem(r: Rng) -> Exchange:
    a = word(r)
    question = r.choice(
        ["Write a poem about {}.", "A poem about {} please", "Make a rhyme about {}."]
    )
    answer = f"Roses are red, violets are blue,\nI like {a}, and I like you too."
    return said("talk", question.format(a), answer, f"The user wants a poem about {a}.")


def _count(r: Rng) -> Exchange:
    a = r.randint(0, 20)
    b = a + r.randint(2, 12)
    if r.random() < 0.25:
        question = r.choice([f"Count down from {b} to {a}.", f"Count backwards from {b} to {a}."])
        numbers = list(range(b, a - 1, -1))
    elif r.random() < 0.4:
        question = r.choice([f"Count to {b}.", f"Can you count to {b}?"])
        numbers = list(range(1, b + 1))
    else:
        question = r.choice(
            [f"Count from {a} to {b}.", f"count {a} to {b}", f"List the numbers from {a} to {b}."]
        )
        numbers = list(range(a, b + 1))
    return said("talk", question, ", ".join(map(str, numbers)) + ".", "I will count.")


def _list(r: Rng) -> Exchange:
    what = r.choice(list(LISTS))
    question = r.choice(["List three {}.", "Name three {}.", "Give me 3 {}.", "Three {} please"])
    answer = "\n".join(f"- {item}" for item in LISTS[what])
    return said("talk", noisy(r, question.format(what)), answer, f"I will list three {what}.")


def _favorite(r: Rng) -> Exchange:
    what = r.choice(["color", "animal", "food", "number"])
    best = {"color": "blue", "animal": "the owl", "food": "electricity", "number": "42"}[what]
    question = r.choice(["What is your favorite {}?", "What {} do you like?", "your favorite {}?"])
    answer = f"My favorite {what} is {best}."
    return said("talk", noisy(r, question.format(what)), answer, "The user asks what I like.")


KINDS: list[tuple[Callable[[Rng], Exchange], float]] = [
    (_fixed, 5), (_capital, 3), (_opposite, 2), (_color, 1.2), (_next, 1), (_sum, 4), (_joke, 1),
    (_story, 2), (_poem, 0.7), (_count, 1.5), (_list, 0.8), (_favorite, 0.5),
]  # fmt: skip


def small_talk(r: Rng) -> Exchange:
    """One exchange of small talk."""
    make = r.choices([k for k, _ in KINDS], [w for _, w in KINDS])[0]
    return make(r)
