"""Facts about models, hot swap, streaming and memory."""

MODELS: list[tuple[str, str, str]] = [
    (
        "how to list models",
        "Run `mlx-router models`, or call GET /v1/models.",
        """How do I list the models?
        Which models are available?
        How do I see all models?
        What models do you have?
        List models
        Which models can I use?
        Show me the models.
        How can I see which models are installed?
        Where is the list of models?
        What is /v1/models?
        available models""",
    ),
    (
        "which models work",
        "Every MLX model that mlx-lm or mlx-vlm can load works: text, vision and embedding models.",
        """Which models are supported?
        What kinds of models can {r} serve?
        Does {r} support Llama?
        Can I run Qwen?
        Does it work with Mistral models?
        Which model formats work?
        Does {r} support Gemma?
        Can {r} load GGUF files?
        supported models
        What model types work with {r}?
        Does it support DeepSeek?""",
    ),
    (
        "hot swap",
        "Hot swap means that a model is loaded when it is asked for; the least recently used idle"
        " one makes room.",
        """What is hot swap?
        What is hot swapping?
        How does hot swap work?
        Explain hot swapping.
        What happens when I switch models?
        How does {r} switch between models?
        How are models swapped?
        Can I use several models?
        How do I switch models?
        Can {r} serve many models?
        When is a model unloaded?
        hot swap""",
    ),
    (
        "cache_size",
        "cache_size is how many models stay loaded; 2 by default. The least recently used idle"
        " one is unloaded.",
        """What is cache_size?
        How many models stay loaded?
        What does cache_size mean?
        How many models can be loaded at once?
        What is the default cache_size?
        cache_size
        How do I keep more models in memory?
        How many models are kept in memory?
        What is the cache size?""",
    ),
    (
        "how to load or unload a model",
        "Use `mlx-router load-model NAME` and `mlx-router unload-model NAME`, or the buttons on"
        " /hub/.",
        """How do I unload a model?
        How do I load a model by hand?
        How can I free a model?
        How do I remove a model from memory?
        unload model
        load-model
        Which command loads a model?
        How do I preload a model?
        Can I unload a model?""",
    ),
    (
        "pinned models",
        "Set `pinned: true` for a model in config.json, and it is never unloaded to make room.",
        """How do I keep a model loaded?
        What is a pinned model?
        How do I pin a model?
        What does pinned mean?
        Can a model stay in memory for ever?
        pin a model
        How can I stop a model from being unloaded?""",
    ),
    (
        "idle models",
        "Set ttl_seconds for a model in config.json; it is unloaded when idle for that long.",
        """What is ttl_seconds?
        How do I unload idle models?
        Can models unload by themselves?
        When do idle models go?
        ttl_seconds
        How do I free memory when idle?
        How long does an idle model stay?""",
    ),
    (
        "streaming formats",
        "The streaming formats are sse (the default), json_lines and json_array.",
        """Which streaming formats are there?
        What streaming formats does {r} support?
        How does streaming work?
        Can {r} stream?
        Does it support streaming?
        What is streaming_format?
        streaming formats
        What is json_lines?
        What is sse?
        How do I stream an answer?
        What is json_array?
        List the streaming formats.""",
    ),
    (
        "memory pressure",
        "The memory pressure levels are normal, moderate, high and critical. Token limits shrink"
        " as pressure grows.",
        """What are the memory pressure levels?
        What is memory pressure?
        How does {r} handle memory pressure?
        Which memory pressure levels are there?
        memory pressure
        What happens when memory gets low?
        Explain memory pressure.
        What does critical memory mean?
        What if I run out of memory?
        Why was my answer cut short?
        List the pressure levels.""",
    ),
    (
        "how much memory a model needs",
        "A model needs its weights plus room for the context. GET /v1/models shows required_gb"
        " for each model.",
        """How much memory does a model need?
        How much RAM do I need?
        Will my model fit?
        How do I know whether a model fits in memory?
        required_memory_gb
        How is the memory of a model estimated?
        How much RAM does a 7B model need?
        Is 16 GB enough?""",
    ),
]
