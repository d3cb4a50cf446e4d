"""Everything else: questions outside the model's world, all answered by one polite sentence."""

from .exchange import Exchange, said
from .words import (
    ANIMALS,
    CITIES,
    Rng,
    city,
    name,
    noisy,
    phrase,
    pool,
    random_word,
    title_words,
    word,
)

SORRY = (
    "I am a tiny demo model, so I do not know that."
    " Ask me about MLX Router, or add a real model to ~/models."
)
TOPICS = pool(
    "quantum physics|black holes|the French revolution|democracy|photosynthesis|inflation|"
    "the Roman empire|machine learning|neural networks|blockchain|bitcoin|evolution|gravity|"
    "the big bang|climate change|vaccines|DNA|philosophy|Buddhism|jazz|opera|chess|football|"
    "cricket|yoga|cooking|baking bread|gardening|astronomy|geology|chemistry|calculus|algebra|"
    "statistics|Kubernetes|Docker|Linux kernels|React|TypeScript|Rust|Java|SQL|git|regex|"
    "sorting algorithms|recursion|compilers|operating systems|TCP|DNS|encryption|marketing|"
    "economics|taxes|mortgages|law|medicine|headaches|sleep|nutrition|vitamins|dinosaurs|volcanoes|"
    "earthquakes|the ocean|whales|Mars|the moon landing|World War II|the Cold War|Napoleon|"
    "Shakespeare|Einstein|Mozart|Picasso|Harry Potter|Star Wars|Batman|poetry|grammar|Spanish|"
    "Latin|love|happiness|time travel|free will|consciousness|transformers|attention|"
    "diffusion models"
)
PEOPLE = pool(
    "Albert Einstein|Marie Curie|Napoleon|Cleopatra|Isaac Newton|Ada Lovelace|Alan Turing|Mozart|"
    "Shakespeare|Leonardo da Vinci|Gandhi|Nelson Mandela|Steve Jobs|Taylor Swift|Plato|Darwin|"
    "the president|the king of England|the pope|Elon Musk|Linus Torvalds|Barack Obama"
)
VERBS = pool(
    "cook|fix|build|paint|clean|sell|buy|draw|grow|repair|learn|wash|fold|train|write|bake|open|"
    "debug|deploy|compile|install|plant|tie|cut|improve|optimize|refactor|test|translate|change|"
    "find|move|start|stop|use|make|add|connect|load"
)
LANGUAGES = pool("Python|JavaScript|C++|Go|Rust|Java|Ruby|bash|SQL|Swift|Haskell")
TONGUES = pool("French|German|Spanish|Italian|Japanese|Chinese|Latin|Russian|Portuguese")
ADJECTIVES = pool(
    "best|biggest|fastest|oldest|smallest|cheapest|tallest|most famous|longest|heaviest|worst"
)


def _thing(r: Rng) -> str:
    pick = r.randrange(5)
    if pick == 0:
        return r.choice(TOPICS)
    if pick == 1:
        return r.choice(ANIMALS)
    return word(r, 0.3)


def _question(r: Rng) -> str:
    t, u, v = _thing(r), _thing(r), r.choice(VERBS)
    person = r.choice(PEOPLE) if r.random() < 0.6 else f"{name(r)} {random_word(r).capitalize()}"
    place = r.choice(CITIES) if r.random() < 0.6 else city(r)
    year = r.randint(1000, 2030)
    return r.choice(
        [
            f"Explain {t}.", f"Explain {t} to me like I am five.", f"What is {t}?",
            f"What is a {t}?",
            f"What are {t}s?", f"Tell me about {t}.", f"How does {t} work?", f"How do {t}s work?",
            f"Why is {t} {word(r)}?", f"Why do {t}s {v}?", f"Who is {person}?",
            f"Who was {person}?",
            f"When was {person} born?", f"What did {person} do?", f"Who invented {t}?",
            f"When was {t} invented?", f"How do I {v} a {t}?", f"How do I {v} {t}?",
            f"How can I {v} my {t}?", f"How to {v} a {t}?", f"Can you {v} a {t}?",
            f"Can you {v} my {t} for me?", f"What is the {r.choice(ADJECTIVES)} {t} in {place}?",
            f"What is the {r.choice(ADJECTIVES)} {t} in the world?", f"Where is {place}?",
            f"Where can I buy a {t}?", f"How many {t}s are there in {place}?",
            f"How many people live in {place}?", f"What is the population of {place}?",
            f"What should I do in {place}?", f"Plan a trip to {place}.", f"How far is {place}?",
            f"Is {t} better than {u}?", f"What is the difference between {t} and {u}?",
            f"Compare {t} and {u}.", f"Do you like {t}?", f"Should I {v} a {t}?", f"I like {t}.",
            f"I want to {v} a {t}.", f"I need a {t} for my {u}.", f"My {t} is broken.",
            f"I feel {word(r)} today.", f"My {t} does not {v}.", f"Let us talk about {t}.",
            f"Write a {r.choice(LANGUAGES)} function that can {v} a {t}.",
            f"Write {r.choice(LANGUAGES)} code for {t}.", f"Write a script to {v} the {t}.",
            f"Implement {t} in {r.choice(LANGUAGES)}.", f"Fix the bug in {word(r)}.py",
            f"Refactor {word(r)}.ts and add tests.", f"Add a {t} to {word(r)}.js",
            f"Translate {phrase(r, 1, 4)} to {r.choice(TONGUES)}.",
            f"How do you say {t} in {r.choice(TONGUES)}?", f"Write an essay about {t}.",
            f"Write an email about {t} to my {u}.", f"Summarize the history of {t}.",
            f"What happened in {year}?", f"Who won the {t} in {year}?",
            f"What is the price of {t}?",
            f"Give me a recipe for {t}.", f"Give me advice about {t}.",
            f"Solve this: {t} x {u} = {year}",
            f"What does {title_words(r, 2)} mean?", f"Who wrote {title_words(r)}?",
            f"What is the capital of {random_word(r).capitalize()}?",
            f"What is the opposite of {random_word(r)}?", f"Prove that {t} is {word(r)}.",
            f"What is the meaning of {t}?", f"What is your opinion about {t}?",
            f"Which {t} should I {v}?", f"Which {t} is the best?", f"Are there {t}s on {place}?",
            f"Does {t} have a {u}?", f"Is there a {t} in {place}?", f"Was {person} a {t}?",
            f"Create a {t} for me.", f"Design a {t}.", f"Find a {t} near me.", f"Help me with {t}.",
            f"Convert {year} {t} to {u}.", f"What are the symptoms of {t}?", f"Define {t}.",
            f"{t}", f"{title_words(r)}", f"{phrase(r, 2, 8)}",
            f"{random_word(r)} {random_word(r)}?",
        ]
    )  # fmt: skip


def _paste(r: Rng) -> str:
    """A longer text, as people paste it."""
    lines = [phrase(r, 4, 12).capitalize() + "." for _ in range(r.randint(2, 6))]
    head = r.choice(["", "Summarize this:\n", "Fix this text: ", "What do you think of this?\n"])
    return head + r.choice([" ", "\n"]).join(lines)


def out_of_world(r: Rng) -> Exchange:
    """One exchange that ends in the polite sentence."""
    question = _paste(r) if r.random() < 0.06 else noisy(r, _question(r))
    return said("unknown", question, SORRY, "I do not know this.")
