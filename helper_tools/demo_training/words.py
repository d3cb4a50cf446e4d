"""Word pools, random values and spelling noise.

The model is far too small to know the world, but it can learn to copy. It learns that only if
copying is the sole way to be right, so a large share of all values here is random.
"""

import random
import string

Rng = random.Random


def pool(text: str) -> list[str]:
    """Words apart by spaces, or phrases apart by bars: easier to read and extend than a list."""
    return text.split("|" if "|" in text else None)


NAMES = pool(
    "Alice Bob Carol David Emma Frank Grace Henry Iris Jack Kate Liam Maria Noah Olga Paul Rosa "
    "Sam Tina Victor Anna Ben Clara Dylan Eva Felix Hana Ivan Julia Kofi Lena Mateo Nina Omar "
    "Priya Quinn Ravi Sofia Tom Uma Vera Wei Yuki Zara"
)
CITIES = pool(
    "London Boston Seattle Sydney Toronto Munich Milan Kyoto Lagos Paris Berlin Rome Madrid "
    "Lisbon Tokyo Cairo Nairobi Ottawa Lima Oslo Vienna Dublin Athens Warsaw Helsinki Lyon "
    "Zurich Geneva Hamburg Prague Budapest Denver Chicago Austin Mumbai Delhi Seoul Osaka"
)
CITIES += ["New York", "San Francisco", "Cape Town", "Buenos Aires", "Los Angeles"]
ANIMALS = pool(
    "cat dog fox owl rabbit bear horse mouse frog duck turtle lion tiger panda wolf penguin "
    "dragon robot whale hedgehog snail bee"
)
COLORS = pool("red blue green yellow white black brown orange purple grey pink gold silver")
THINGS = pool(
    "apple bridge candle door eagle flower glass house island jacket kettle lemon market needle "
    "ocean pencil queen river stone table umbrella violin window zebra bread cloud dream engine "
    "forest lamp music night paper garden ship train water book car phone cup chair tree moon "
    "star rain fish cake soup shoe hat coat bag box ball bird wall road farm king town code key "
    "coffee tea milk sugar cheese egg rice salt pen clock desk bed room"
)
ENTITIES = pool(
    "order user file note task event ticket invoice customer product message contact account "
    "booking report record page image song movie book recipe flight hotel room price stock "
    "package device sensor light job branch commit issue comment team project city country "
    "language document folder table row server model key token session log metric alarm"
)
SYLLABLES = pool(
    "ba be bi bo da de do fa fi ga go ha hi ja ka ke ko la le li lo ma me mi mo na ne no pa pe "
    "po ra re ri ro sa se si so ta te ti to va ve vi vo za ze zi zo shu tra plo kri glen dor "
    "mar sten wick zorg blen quo fex nim tul vax bri cro"
)


def random_word(r: Rng) -> str:
    """A word that is (almost surely) new: syllables, or now and then plain letters."""
    if r.random() < 0.6:
        return "".join(r.choice(SYLLABLES) for _ in range(r.randint(2, 3)))
    return "".join(r.choice(string.ascii_lowercase) for _ in range(r.randint(3, 8)))


def word(r: Rng, unknown: float = 0.4) -> str:
    """A common word, or with the given chance a random one."""
    return random_word(r) if r.random() < unknown else r.choice(THINGS)


def phrase(r: Rng, low: int = 1, high: int = 4) -> str:
    """A few words in a row."""
    return " ".join(word(r) for _ in range(r.randint(low, high)))


def name(r: Rng) -> str:
    """A person's name; 40 % are invented."""
    return random_word(r).capitalize() if r.random() < 0.4 else r.choice(NAMES)


def city(r: Rng) -> str:
    """A city; 40 % are invented."""
    return random_word(r).capitalize() if r.random() < 0.4 else r.choice(CITIES)


def identifier(r: Rng) -> str:
    """What people paste into tools: A17, ORD-5521, x_204, 4711."""
    digits = "".join(r.choice(string.digits) for _ in range(r.randint(2, 5)))
    letters = "".join(r.choice(string.ascii_uppercase) for _ in range(r.randint(1, 3)))
    return r.choice(
        [
            letters + digits,
            f"{letters}-{digits}",
            digits,
            f"{letters.lower()}_{digits}",
            f"#{digits}",
        ]
    )


def text_value(r: Rng) -> str:
    """Any string a tool argument, a JSON field or a memory may hold."""
    kind = r.randrange(12)
    if kind < 4:
        return word(r)
    if kind < 6:
        return identifier(r)
    if kind == 6:
        return name(r)
    if kind == 7:
        return city(r)
    if kind == 8:
        return phrase(r, 2, 3)
    if kind == 9:
        return f"{word(r)}@{word(r)}.{r.choice(['com', 'org', 'net', 'io'])}"
    if kind == 10:
        extension = r.choice(["txt", "py", "md", "json", "csv"])
        return r.choice([f"{word(r)}.{extension}", f"/{word(r)}/{word(r)}.{extension}"])
    return f"20{r.randint(10, 39)}-{r.randint(1, 12):02d}-{r.randint(1, 28):02d}"


def integer(r: Rng) -> int:
    """An integer with one to four digits, seldom negative."""
    value = r.randint(0, 10 ** r.randint(1, 4) - 1)
    return -value if r.random() < 0.05 else value


def decimal(r: Rng) -> float:
    """A number with one or two places."""
    return round(r.randint(0, 999) + r.randint(1, 99) / 100, r.choice([1, 2]))


def title_words(r: Rng, high: int = 3) -> str:
    """Capitalised words, as in a heading."""
    return " ".join(word(r).capitalize() for _ in range(r.randint(1, high)))


OPENERS = [
    "please ",
    "hey, ",
    "can you tell me: ",
    "quick question: ",
    "ok, ",
    "so ",
    "hi, ",
    "um, ",
]
CLOSERS = [" please", " thanks", " thank you", ", please"]


def _typo(r: Rng, text: str) -> str:
    """Swap, drop or double one letter of one longer word."""
    words = text.split(" ")
    long = [i for i, w in enumerate(words) if len(w) > 4 and w.isalpha()]
    if not long:
        return text
    i = r.choice(long)
    w = words[i]
    k = r.randint(1, len(w) - 2)
    kind = r.randrange(3)
    if kind == 0:
        w = w[:k] + w[k + 1] + w[k] + w[k + 2 :]
    elif kind == 1:
        w = w[:k] + w[k + 1 :]
    else:
        w = w[:k] + w[k] + w[k:]
    words[i] = w
    return " ".join(words)


REWORDINGS: list[tuple[str, list[str]]] = [
    ("How do I ", ["How can I ", "How would I ", "How to ", "Tell me how to ", "How should I ",
                   "Explain how to ", "What do I do to ", "I want to ", "Is there a way to "]),
    ("How can I ", ["How do I ", "How to ", "How could I ", "Show me how to "]),
    ("What is ", ["What's ", "What exactly is ", "Tell me what is ", "Can you explain ",
                  "Please explain ", "I want to know about ", "What about "]),
    ("Which ", ["What ", "Tell me which "]),
    ("Does ", ["Can ", "Will ", "I wonder, does "]),
    ("Where are ", ["Where can I find ", "Where do I find ", "Where can I see "]),
    ("Where is ", ["Where can I find ", "Where do I find ", "Show me where to find "]),
    ("Can I ", ["Could I ", "Is it possible to ", "May I ", "Am I able to "]),
    ("Is there ", ["Do you have ", "Does it have ", "Is there perhaps "]),
    ("Do I need ", ["Do I have to have ", "Must I have ", "Is it necessary to have "]),
    ("Tell me about ", ["What do you know about ", "I want to hear about ", "Explain "]),
]  # fmt: skip


def reword(r: Rng, text: str) -> str:
    """Now and then another beginning that means the same."""
    for begin, others in REWORDINGS:
        if text.startswith(begin) and r.random() < 0.4:
            return r.choice(others) + text[len(begin) :]
    return text


def noisy(r: Rng, text: str) -> str:
    """The same question as hurried people type it: casing, punctuation, courtesy, typos."""
    text = reword(r, text[0].upper() + text[1:])
    if r.random() < 0.25:
        text = text.rstrip("?.!") + r.choice(["", "", "", "??", "?", ".", "!"])
    if r.random() < 0.30:
        text = text.lower()
    elif r.random() < 0.03:
        text = text.upper()
    if r.random() < 0.12:
        text = r.choice(OPENERS) + text[0].lower() + text[1:]
    elif r.random() < 0.06 and text[-1] not in "?.!":
        text += r.choice(CLOSERS)
    elif r.random() < 0.03:
        text = r.choice(["Hello! ", "Hi. "]) + text
    if r.random() < 0.08:
        text = _typo(r, text)
    return text
