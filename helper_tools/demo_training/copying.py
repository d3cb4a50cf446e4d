"""Exchanges that only copying can answer: echo, lists, memory, names, JSON."""

import json
from collections.abc import Callable
from typing import Any

from .exchange import Exchange, Message, assistant, said
from .words import (
    COLORS,
    ENTITIES,
    Rng,
    city,
    decimal,
    identifier,
    integer,
    name,
    phrase,
    pool,
    random_word,
    text_value,
    word,
)


def _echo(r: Rng) -> Exchange:
    text = phrase(r, 1, 6) if r.random() < 0.6 else text_value(r)
    if r.random() < 0.2:
        text = text[0].upper() + text[1:] + r.choice(["", ".", "!"])
    quoted = r.choice([text, text, f'"{text}"', f"'{text}'"])
    ask = r.choice(
        ["Repeat: {}", "Say this: {}", "Repeat after me: {}", "Please say {}", "Say {}", "say {}",
         "Reply with {}", "Reply with the word {}", "Answer with exactly: {}", "Echo {}",
         "Respond with only {}", "Reply with exactly {}", "Write {}", "Just say {}",
         "Say exactly: {}", "Output {}", "Print {}", "Repeat the following: {}"]
    )  # fmt: skip
    return said("copy", ask.format(quoted), text, "I should repeat the words.")


def _bullets(r: Rng) -> Exchange:
    items = [word(r) if r.random() < 0.7 else phrase(r, 2, 2) for _ in range(r.randint(2, 5))]
    numbered = r.random() < 0.3
    ask = r.choice(
        ["Make a numbered list of {}", "Number these: {}", "Numbered list: {}"]
        if numbered
        else ["List these items: {}", "Make a list of {}", "List three items: {}", "List: {}"]
    )
    if numbered:
        answer = "\n".join(f"{i}. {item}" for i, item in enumerate(items, 1))
    else:
        answer = "\n".join(f"- {item}" for item in items)
    question = ask.format(", ".join(items)) + r.choice(["", "."])
    return said("copy", question, answer, "I will make a list.")


def _pick(r: Rng) -> Exchange:
    items = [word(r) for _ in range(r.randint(3, 5))]
    which = r.choice(["first", "last"])
    question = r.choice(
        [
            f"What is the {which} word of: {' '.join(items)}",
            f"Say the {which} word: {' '.join(items)}",
        ]
    )
    answer = items[0] if which == "first" else items[-1]
    return said("copy", question, answer, f"I look for the {which} word.")


def _spell(r: Rng) -> Exchange:
    w = word(r, 0.3)
    ask = r.choice(["Spell {}.", "How do you spell {}?", "Spell the word {}."])
    return said("copy", ask.format(w), "-".join(w) + ".", f"I will spell {w}.")


def _told_name(r: Rng) -> Exchange:
    n = name(r)
    ask = r.choice(
        ["My name is {}.", "Hi, I am {}.", "Hello! My name is {}.", "I am {}.", "my name is {}",
         "Hi, I'm {}.", "Call me {}.", "I'm {}", "Hello, my name is {}. What can you do?"]
    )  # fmt: skip
    if ask.endswith("?"):
        answer = f"Nice to meet you, {n}! I can answer questions about MLX Router."
    else:
        answer = f"Nice to meet you, {n}! How can I help you?"
    return said("copy", ask.format(n), answer, f"The user's name is {n}.")


def name_memory(r: Rng) -> tuple[Exchange, Exchange]:
    """The user gives a name, and asks for it later."""
    first = _told_name(r)
    n = first.messages[1]["content"].split("you, ")[1].split("!")[0]
    ask = r.choice(
        ["What is my name?", "Who am I?", "what's my name", "Do you remember my name?",
         "What did I say my name was?", "Tell me my name."]
    )  # fmt: skip
    return first, said("copy", ask, f"Your name is {n}.", f"The user told me the name {n}.")


def _name_unknown(r: Rng) -> Exchange:
    ask = r.choice(["What is my name?", "Who am I?", "Do you remember my name?", "what's my name"])
    return said("copy", ask, "You have not told me your name yet.", "The user told me no name.")


MEMORABLE = pool("secret code|password|magic word|favorite color|key|room number|phone number")


def fact_memory(r: Rng) -> tuple[Exchange, Exchange]:
    """The user states something, and asks for it later."""
    what = r.choice(MEMORABLE) if r.random() < 0.5 else f"{word(r)}"
    value = r.choice(COLORS) if "color" in what else text_value(r)
    owner = r.choice(["the", "my"])
    yours = "your" if owner == "my" else "the"
    tell = r.choice(["Remember: {} {} is {}.", "{} {} is {}.", "Please remember that {} {} is {}."])
    told = tell.format(owner, what, value)
    first = said(
        "copy", told[0].upper() + told[1:], f"I will remember that {yours} {what} is {value}.",
        f"The user tells me that {yours} {what} is {value}.",
    )  # fmt: skip
    ask = r.choice(["What is {} {}?", "Tell me {} {}.", "what's {} {}", "Do you remember {} {}?"])
    answer = f"{yours.capitalize()} {what} is {value}."
    return first, said("copy", ask.format(owner, what), answer, f"The user told me: {value}.")


def _stated(r: Rng) -> Exchange:
    """Statement and question in one message, sometimes with distractors before or after."""
    facts = [(word(r), text_value(r)) for _ in range(r.randint(1, 4))]
    what, value = r.choice(facts)
    told = " ".join(f"The {k} is {v}." for k, v in facts)
    question = r.choice(["{} What is the {}?", "{} Tell me the {}.", "{}\nWhat is the {}?"])
    return said("copy", question.format(told, what), f"The {what} is {value}.", f"It says {value}.")


def field_value(r: Rng) -> Any:
    """A JSON value."""
    kind = r.randrange(10)
    if kind < 6:
        return text_value(r)
    if kind < 9:
        return integer(r) if kind < 8 else decimal(r)
    return r.random() < 0.5


def _shown(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


def _person_json(r: Rng) -> Exchange:
    n, age, c = name(r), r.randint(1, 99), city(r)
    question = r.choice(
        [f"Give me JSON for a person named {n}, age {age}, city {c}.",
         f"Write JSON: name {n}, age {age}, city {c}.",
         f"Make a JSON object with name {n}, age {age} and city {c}.",
         f"{n} is {age} years old and lives in {c}. Reply with JSON.",
         f"Extract the name, age and city as JSON: {n} is {age} and lives in {c}.",
         f"{n}, {age}, {c} as JSON please",
         f"Return a JSON object with keys name, age and city for {n}, {age}, {c}."]
    )  # fmt: skip
    answer = json.dumps({"name": n, "age": age, "city": c}, ensure_ascii=False)
    return said("json", question, answer, "I will write a JSON object.")


def _fields_json(r: Rng) -> Exchange:
    keys: list[str] = []
    while len(keys) < r.randint(1, 4):
        key = r.choice([r.choice(ENTITIES), word(r), f"{word(r)}_{word(r)}", random_word(r)])
        if key not in keys:
            keys.append(key)
    data = {key: field_value(r) for key in keys}
    listed = ", ".join(keys[:-1]) + (" and " if len(keys) > 1 else "") + keys[-1]
    values = ", ".join(_shown(v) for v in data.values())
    style = r.randrange(4)
    if style == 0:
        told = ", ".join(f"{k} {_shown(v)}" for k, v in data.items())
        question = r.choice(["Write JSON: {}", "Give me JSON with {}", "JSON please: {}"]).format(
            told
        )
    elif style == 1:
        told = ", ".join(f"{k}={_shown(v)}" for k, v in data.items())
        question = r.choice(["Reply with JSON: {}", "As JSON: {}", "Convert to JSON: {}"]).format(
            told
        )
    elif style == 2:
        question = f"Reply in JSON with keys {listed} and values {values}."
    else:
        question = r.choice(["Reply in JSON with keys {}.", "Give me a JSON object with keys {}."])
        question = question.format(listed)
        data = dict.fromkeys(keys, "...")
    answer = json.dumps(data, ensure_ascii=False)
    return said("json", question, answer, "I will write a JSON object.")


def _list_json(r: Rng) -> Exchange:
    items = [word(r) if r.random() < 0.7 else identifier(r) for _ in range(r.randint(2, 5))]
    question = r.choice(
        ["Make a JSON list of {}.", "JSON array: {}", "Give me {} as a JSON array."]
    )
    answer = json.dumps(items)
    return said("json", question.format(", ".join(items)), answer, "I will write a JSON array.")


JSON_SYSTEMS = [
    "Reply only with JSON.",
    "Answer in JSON.",
    "You always answer with a JSON object.",
    "Respond with JSON only.",
    "You are a JSON API. Output JSON and nothing else.",
]


def as_json_answer(exchange: Exchange) -> Exchange:
    """The same answer, wrapped as {"answer": ...}: for system prompts that want JSON only."""
    message = dict(exchange.messages[-1])
    message["content"] = json.dumps({"answer": message["content"]}, ensure_ascii=False)
    return Exchange("json", [*exchange.messages[:-1], message], exchange.tools)


def conversation_title(r: Rng, opening: str) -> Exchange:
    """The task chat front ends send to name a conversation, find tags or propose questions."""
    tasks: list[tuple[str, dict[str, Any]]] = [
        ("Generate a concise, 3-5 word title with an emoji summarizing the chat history.",
         {"title": " ".join(opening.split()[:4])}),
        ("Generate 1-3 broad tags categorizing the main themes of the chat history.",
         {"tags": ["General"]}),
        ("Suggest 3-5 relevant follow-up questions that the user might ask next.",
         {"follow_ups": ["What is MLX Router?", "How do I add a model?", "What can you do?"]}),
    ]  # fmt: skip
    task, answer = r.choice(tasks)
    key = next(iter(answer))
    rules = r.sample(
        ["The title should clearly represent the main theme of the conversation.",
         "Use the chat's primary language.", "Keep it short and simple.",
         "Prioritize accuracy over creativity.", "Do not add any other text.",
         "Your entire response must be a single JSON object.", "Do not use markdown code fences.",
         "If the content is too short, use General.",
         "Avoid quotation marks or special formatting."],
        r.randint(1, 6),
    )  # fmt: skip
    shape = json.dumps({key: "your concise title here" if key == "title" else ["..."]})
    guide = "\n".join(f"- {rule}" for rule in rules)
    reply = r.choice(["Hello! How can I help you today?", phrase(r, 3, 12), "I do not know."])
    prompt = (
        f"### Task:\n{task}\n### Guidelines:\n{guide}\n### Output:\nJSON format: {shape}\n"
        f"### Chat History:\n<chat_history>\nUSER: {opening}\nASSISTANT: {reply}\n</chat_history>"
    )
    user: Message = {"role": "user", "content": prompt}
    text = json.dumps(answer, ensure_ascii=False)
    return Exchange("json", [user, assistant(text, f"I will write the {key}.")])


COPY_KINDS: list[tuple[Callable[[Rng], Exchange], float]] = [
    (_echo, 5), (_bullets, 2), (_pick, 0.7), (_spell, 1), (_told_name, 1.5), (_name_unknown, 0.4),
    (_stated, 2),
]  # fmt: skip
JSON_KINDS: list[tuple[Callable[[Rng], Exchange], float]] = [
    (_person_json, 2), (_fields_json, 3), (_list_json, 1),
]  # fmt: skip


def copying(r: Rng) -> Exchange:
    """One exchange whose answer is in the question."""
    return r.choices([k for k, _ in COPY_KINDS], [w for _, w in COPY_KINDS])[0](r)


def json_on_request(r: Rng) -> Exchange:
    """One exchange that asks for JSON."""
    return r.choices([k for k, _ in JSON_KINDS], [w for _, w in JSON_KINDS])[0](r)
