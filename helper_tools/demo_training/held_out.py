"""Questions and tools written by hand that occur nowhere in the training data."""

from typing import Any

from .exchange import Tool

# (question, topic of the fact that answers it; "" means: the polite sentence)
QUESTIONS: list[tuple[str, str]] = [
    ("could you tell me what MLX Router actually is?", "what MLX Router is"),
    ("What sort of software is MLX Router?", "what MLX Router is"),
    ("how would I go about starting the router?", "how to start the server"),
    ("what do i type to start the server", "how to start the server"),
    ("which port does it listen on by default", "the default port"),
    ("Is there a way to use a different port?", "the default port"),
    ("what url should my client use", "the address of the API"),
    ("Where do I have to put new models?", "how to add a model"),
    ("i downloaded a model, in which folder should it go?", "how to add a model"),
    ("how can i install another model", "how to add a model"),
    ("Do I need to restart the router when I add a model?", "whether a restart is needed"),
    ("how do i download models from huggingface", "how to download a model"),
    ("can i run it without internet", "whether internet is needed"),
    ("Does MLX Router work without an internet connection?", "whether internet is needed"),
    ("will it run on linux", "the hardware"),
    ("What computer do I need for this?", "the hardware"),
    ("what licence is it under", "the licence"),
    ("is mlx router open source software?", "the licence"),
    ("what does the config file contain?", "config.json"),
    ("how can I stop the router", "how to stop the server"),
    ("where can i find the logs", "the logs"),
    ("is there a web dashboard?", "the hub page"),
    ("how do i check the health of the server", "health checks"),
    ("does it have prometheus metrics", "metrics"),
    ("where is swagger", "the API documentation"),
    ("do i have to set an api key?", "API keys"),
    ("what's your name", "who I am"),
    ("who or what are you?", "who I am"),
    ("what are you able to do for me", "what I can do"),
    ("how many params do you have", "how big I am"),
    ("what are the endpoints of the server", "the endpoints"),
    ("how to use the openai python sdk with it", "the OpenAI SDK"),
    ("how to connect open-webui", "Open WebUI"),
    ("can I use this with a coding agent?", "coding agents"),
    ("how can i list all models", "how to list models"),
    ("Explain hot swap to me", "hot swap"),
    ("what is the cache_size setting?", "cache_size"),
    ("how many models can stay loaded at the same time?", "cache_size"),
    ("which formats can it stream?", "streaming formats"),
    ("what levels of memory pressure exist?", "memory pressure"),
    ("what's the default for max_tokens?", "max_tokens"),
    ("does the server support tool calls?", "tools"),
    ("can the router do function calling", "tools"),
    ("can you see pictures?", "images"),
    ("does it read pdf files", "PDF files"),
    ("how do i create embeddings", "embeddings"),
    ("can several people use it at once?", "speed"),
    ("can i use it as a python library?", "the library"),
    ("what exactly is MLX?", "MLX"),
    ("Who is the queen of Denmark?", ""),
    ("Explain how a fridge works.", ""),
    ("Write a Python program that sorts a list.", ""),
    ("What is the best way to learn guitar?", ""),
    ("how tall is mount everest", ""),
    ("Give me a recipe for pancakes", ""),
    ("Summarize the plot of Hamlet.", ""),
    ("my washing machine leaks", ""),
    ("Why is the ocean salty?", ""),
    ("Translate good morning to Italian.", ""),
    ("What is the square root of 144?", ""),
    ("Fix the failing tests in utils.py", ""),
    ("Can you recommend a good film?", ""),
]


def _tool(name: str, description: str, properties: dict[str, Any], required: list[str]) -> Tool:
    parameters = {"type": "object", "properties": properties, "required": required}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


_S = {"type": "string"}
_I = {"type": "integer"}
_N = {"type": "number"}
_B = {"type": "boolean"}

TOOLS: dict[str, Tool] = {
    tool["function"]["name"]: tool
    for tool in [
        _tool("lookup_order", "Look up an order by its id.", {"order_id": _S}, ["order_id"]),
        _tool("create_ticket", "Create a support ticket.",
              {"title": _S, "priority": {"type": "string", "enum": ["low", "medium", "high"]}},
              ["title", "priority"]),
        _tool("get_user_profile", "Get the profile of a user.", {"username": _S}, ["username"]),
        _tool("convert_currency", "Convert money between currencies.",
              {"amount": _N, "source": _S, "target": _S}, ["amount", "source", "target"]),
        _tool("turn_on_light", "Turn on the light in a room.",
              {"room": _S, "brightness": _I}, ["room"]),
        _tool("read_file", "Read a file from disk.", {"file_path": _S}, ["file_path"]),
        _tool("list_directory", "List the files in a directory.", {"directory": _S}, ["directory"]),
        _tool("translate_text", "Translate a text.", {"text": _S, "language": _S},
              ["text", "language"]),
        _tool("get_exchange_rate", "Get the exchange rate of a currency.", {"currency": _S},
              ["currency"]),
        _tool("book_flight", "Book a flight.", {"origin": _S, "destination": _S},
              ["origin", "destination"]),
        _tool("set_volume", "Set the volume.", {"level": _I, "mute": _B}, ["level"]),
        _tool("multiply", "Multiply two integers.", {"a": _I, "b": _I}, ["a", "b"]),
        _tool("get_weather", "Get the current weather.",
              {"location": _S, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
              ["location"]),
        _tool("remember_fact", "Store a fact.", {"subject": _S, "statement": _S},
              ["subject", "statement"]),
    ]
}  # fmt: skip

# (question, tools offered, tool to call, its arguments)
CALLS: list[tuple[str, list[str], str, dict[str, Any]]] = [
    ("Look up order A17", ["lookup_order"], "lookup_order", {"order_id": "A17"}),
    ("Use the lookup_order tool with A17", ["lookup_order", "read_file"], "lookup_order",
     {"order_id": "A17"}),
    ("Please look up order ZX-993.", ["get_weather", "lookup_order", "set_volume"], "lookup_order",
     {"order_id": "ZX-993"}),
    ("Create a ticket with title printer and priority high", ["create_ticket"], "create_ticket",
     {"title": "printer", "priority": "high"}),
    ("Call create_ticket with title=screen and priority=low", ["lookup_order", "create_ticket"],
     "create_ticket", {"title": "screen", "priority": "low"}),
    ("Get the profile of user marvin", ["get_user_profile", "read_file"], "get_user_profile",
     {"username": "marvin"}),
    ("Use get_user_profile for trillian.", ["get_user_profile"], "get_user_profile",
     {"username": "trillian"}),
    ("Call convert_currency with amount=20, source=EUR, target=USD", ["convert_currency"],
     "convert_currency", {"amount": 20, "source": "EUR", "target": "USD"}),
    ("Use convert_currency: amount: 5, source: CHF, target: GBP", ["convert_currency", "multiply"],
     "convert_currency", {"amount": 5, "source": "CHF", "target": "GBP"}),
    ("Turn on the light in the kitchen", ["turn_on_light"], "turn_on_light", {"room": "kitchen"}),
    ("Call turn_on_light with room=attic and brightness=40", ["turn_on_light", "set_volume"],
     "turn_on_light", {"room": "attic", "brightness": 40}),
    ("Read the file notes.txt", ["read_file", "list_directory"], "read_file",
     {"file_path": "notes.txt"}),
    ("Run read_file on /etc/hosts", ["read_file"], "read_file", {"file_path": "/etc/hosts"}),
    ("Use list_directory with /srv", ["read_file", "list_directory"], "list_directory",
     {"directory": "/srv"}),
    ("Call translate_text with text=hello and language=French", ["translate_text"],
     "translate_text", {"text": "hello", "language": "French"}),
    ("Use get_exchange_rate for YEN", ["get_exchange_rate", "convert_currency"],
     "get_exchange_rate", {"currency": "YEN"}),
    ("Call book_flight with origin Oslo and destination Bergen", ["book_flight"], "book_flight",
     {"origin": "Oslo", "destination": "Bergen"}),
    ("Use set_volume with 7", ["set_volume"], "set_volume", {"level": 7}),
    ("Call set_volume with level=3 and mute=true", ["set_volume", "turn_on_light"], "set_volume",
     {"level": 3, "mute": True}),
    ("Multiply 17 and 25 with the tool", ["multiply"], "multiply", {"a": 17, "b": 25}),
    ("Call multiply with a=3 and b=4", ["multiply", "get_weather"], "multiply", {"a": 3, "b": 4}),
    ("What is the weather in Reykjavik?", ["get_weather"], "get_weather",
     {"location": "Reykjavik"}),
    ("What's the weather like in Porto in celsius?", ["get_weather", "lookup_order"],
     "get_weather", {"location": "Porto", "unit": "celsius"}),
    ("Call remember_fact with subject=cat and statement=hungry", ["remember_fact"],
     "remember_fact", {"subject": "cat", "statement": "hungry"}),
]  # fmt: skip

# What a newcomer may try first; printed, not scored.
TRANSCRIPT: list[str] = [
    "Hello",
    "who are you",
    "What is MLX Router?",
    "How do I add a model?",
    "how do i connect the openai sdk",
    "What is hot swap?",
    "What is the capital of Norway?",
    "What is 7 plus 8?",
    "Tell me a story about a fox.",
    "Count from 3 to 9.",
    "Repeat: kettle zorgle banana",
    "Give me JSON for a person named Zara, age 33, city Oslo.",
    "Explain quantum physics.",
]
