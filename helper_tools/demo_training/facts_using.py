"""Facts about using MLX Router's API and library, its memory care, and the demo model itself."""

USING: list[tuple[str, str, str]] = [
    (
        "who I am",
        "I am the tiny demo model of MLX Router. I run on your own machine.",
        """Who are you?
        What are you?
        What is your name?
        Tell me about yourself.
        Introduce yourself.
        Which model are you?
        What model is this?
        Are you an AI?
        Are you a robot?
        Are you ChatGPT?
        Are you human?
        Are you Claude?
        who r u
        What model am I talking to?
        Who am I talking to?
        Do you have a name?
        Are you real?
        Who made you?
        Who created you?""",
    ),
    (
        "what I can do",
        "I can answer questions about MLX Router, chat a little, write JSON and call tools.",
        """What can you do?
        What can this model do?
        How can you help me?
        What are your abilities?
        What are you good at?
        What can I ask you?
        What do you know?
        What can the demo model do?
        help
        Help me
        Can you help me?
        What are you able to do?
        What should I ask you?
        What are your limits?""",
    ),
    (
        "how big I am",
        "I have about two million parameters and take less than four megabytes.",
        """How big are you?
        How large is this model?
        How many parameters do you have?
        How big is the demo model?
        What is your size?
        How many megabytes are you?
        model size
        How small are you?
        How much memory do you need?
        Are you a large language model?
        How many parameters does the demo model have?""",
    ),
    (
        "how I was trained",
        "I was trained on a CPU in under an hour, on text made by the scripts in helper_tools.",
        """How were you trained?
        What is your training data?
        Who trained you?
        How long did your training take?
        Where does the demo model come from?
        What were you trained on?
        When were you trained?
        How was the demo model made?
        Can I train you myself?
        How do I retrain the demo model?""",
    ),
    (
        "why my answers are simple",
        "I am only a tiny demo model. Add a real model to ~/models for real answers.",
        """Why are you so dumb?
        Why are your answers so short?
        Why are you so limited?
        You are stupid.
        That is wrong.
        You are not very smart.
        Your answer is wrong.
        Can you be smarter?
        How do I get better answers?
        Why don't you know anything?
        That makes no sense.
        Are you smart?
        this model is bad""",
    ),
    (
        "the endpoints",
        "/v1/chat/completions, /v1/completions, /v1/models, /v1/embeddings, /health, /v1/health,"
        " /metrics, /docs, /redoc and /hub/.",
        """Which endpoints are there?
        What endpoints does {r} have?
        List the endpoints.
        What routes does {r} offer?
        Which API endpoints are supported?
        endpoints
        What is the API of {r}?
        Show me all endpoints.
        What URLs can I call?
        Which paths does the API have?
        List all API routes.""",
    ),
    (
        "the OpenAI SDK",
        'Use base_url="http://127.0.0.1:8800/v1" and any api_key, unless you set keys.',
        """How do I use the OpenAI SDK?
        How do I connect the OpenAI SDK?
        How do I connect with the openai python library?
        Can I use the OpenAI client?
        How do I use {r} from Python with openai?
        Does it work with the OpenAI SDK?
        openai sdk
        How do I set up the OpenAI client?
        How to connect openai to {r}
        How do I point the OpenAI library at {r}?
        How can I connect my app?
        Is {r} compatible with OpenAI?
        openai python client""",
    ),
    (
        "Open WebUI",
        "In Open WebUI, add an OpenAI connection with the URL http://127.0.0.1:8800/v1 and any key.",
        """How do I connect Open WebUI?
        How do I use Open WebUI with {r}?
        Does {r} work with Open WebUI?
        open webui
        How to set up openwebui
        How can I chat in a browser?
        Which chat front end can I use?
        How do I add {r} to Open WebUI?
        Open WebUI connection
        Is there a chat UI for {r}?""",
    ),
    (
        "coding agents",
        "Yes. Point the agent at http://127.0.0.1:8800/v1 as an OpenAI-compatible provider.",
        """Does {r} work with coding agents?
        Can I use {r} with opencode?
        Can I use goose with {r}?
        Does it work with Claude Code?
        How do I use {r} with an agent?
        Does it support codex?
        Which agents work with {r}?
        How do I connect my coding agent?
        agents""",
    ),
    (
        "curl",
        "curl http://127.0.0.1:8800/v1/chat/completions -d"
        ' \'{"messages": [{"role": "user", "content": "Hello"}]}\'',
        """How do I call {r} with curl?
        Give me a curl example.
        curl example
        Show me a curl command.
        How can I test {r} with curl?
        How do I send a request?
        Example request?
        How do I use curl with {r}?""",
    ),
    (
        "what happens without a model name",
        "A request without a model goes to the default model, or to the one used last.",
        """What happens if I send no model?
        Is the model field required?
        Which model answers by default?
        What is the default model?
        Do I need to name a model?
        Which model is used when none is given?
        default model
        Can I leave out the model name?""",
    ),
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
    (
        "max_tokens",
        "max_tokens limits the length of an answer. The default is 4096.",
        """What is max_tokens?
        What does max_tokens mean?
        How long can an answer be?
        What is the default max_tokens?
        How do I get longer answers?
        max_tokens
        What is the token limit?
        How many tokens can you write?
        How do I limit the answer length?""",
    ),
    (
        "the timeout",
        "An answer may take 120 seconds by default. Set timeout in config.json or use `--timeout`.",
        """What is the timeout?
        How long may an answer take?
        How do I change the timeout?
        What is the default timeout?
        timeout
        My request timed out
        Why do I get a timeout?
        How do I raise the time limit?""",
    ),
    (
        "the temperature",
        "Set temperature in the request, or temp for a model in config.json. 0 means greedy.",
        """How do I set the temperature?
        What is temperature?
        What does temperature do?
        Can I set temperature 0?
        How do I get the same answer every time?
        temperature
        How do I make answers deterministic?
        Which sampling settings are there?""",
    ),
    (
        "tools",
        "Yes. Send tools in the request, and the model's calls come back as tool_calls.",
        """Does {r} support tools?
        How do tools work?
        Can you call tools?
        Does it support function calling?
        How do I use function calling?
        tool calling
        Can {r} call functions?
        How do I use tools with {r}?
        Are tool calls supported?
        function calling""",
    ),
    (
        "JSON output",
        "Use response_format with json_object or json_schema; it is enforced while decoding.",
        """Does {r} support JSON mode?
        How do I get JSON output?
        What is response_format?
        Does it support structured output?
        How do I enforce a JSON schema?
        structured output
        json mode
        Can {r} guarantee valid JSON?
        How do I use json_schema?""",
    ),
    (
        "reasoning",
        "Reasoning comes in reasoning_content, apart from the answer. I think when"
        " enable_thinking is true.",
        """Can you think?
        How do I turn on thinking?
        What is reasoning_content?
        Does {r} support reasoning models?
        How do I enable thinking?
        Where does the reasoning go?
        enable_thinking
        How do I see the reasoning?
        Do you support reasoning?""",
    ),
    (
        "images",
        "I cannot see images. With a vision model, send images as data URIs or URLs.",
        """Can you see images?
        What is in this image?
        Describe this picture.
        How do I send an image?
        Does {r} support vision?
        Can you look at a photo?
        vision models
        How do I use vision?
        What do you see?
        Can {r} read images?
        What is in this photo?
        Describe the image.""",
    ),
    (
        "PDF files",
        "PDF files are sent as data URIs; their pages are rendered as images for a vision model.",
        """Can {r} read PDFs?
        How do I send a PDF?
        Does it support PDF files?
        Can you read a PDF?
        pdf
        How are PDF files handled?
        Can I ask about a PDF?
        Summarize this PDF.""",
    ),
    (
        "embeddings",
        "Send text to POST /v1/embeddings with an embedding model.",
        """How do I get embeddings?
        Does {r} support embeddings?
        How do I embed text?
        What is /v1/embeddings?
        embeddings
        Can I make vectors from text?
        Which endpoint gives embeddings?
        How do I use an embedding model?""",
    ),
    (
        "speed",
        "Requests for one model decode together by continuous batching, and known prompt beginnings"
        " are cached.",
        """Is {r} fast?
        How fast is {r}?
        What is continuous batching?
        Does {r} support batching?
        Can it serve several users at once?
        How many requests can run at the same time?
        Why is {r} fast?
        batching
        Does it handle parallel requests?
        Is there a prompt cache?
        How does prompt caching work?""",
    ),
    (
        "the first answer being slow",
        "The first request loads the model, which takes a while. Later answers are faster.",
        """Why is the first answer slow?
        Why does the first request take so long?
        Why is it slow at first?
        Why is {r} slow?
        The first answer takes very long
        slow first request
        Why do I have to wait?""",
    ),
    (
        "the library",
        "Use `from mlx_router import MLXModelManager`. It works without a server.",
        """How do I use {r} as a library?
        Can I use {r} in Python?
        How do I import {r}?
        What is MLXModelManager?
        Is there a Python library?
        Can I use it without a server?
        python library
        How do I embed {r} in my program?
        How can I call {r} from my own code?
        import mlx_router""",
    ),
    (
        "MLX",
        "MLX is Apple's open array framework for machine learning on Apple silicon.",
        """What is MLX?
        Explain MLX.
        Who makes MLX?
        what is mlx
        What does MLX mean?
        Tell me about MLX.
        Is MLX from Apple?
        mlx""",
    ),
    (
        "errors",
        "Errors have OpenAI's shape: a message, a type and a code. The log tells more.",
        """What do errors look like?
        I get an error
        I got an error message. What now?
        How does {r} report errors?
        Something went wrong
        What is the error format?
        It does not work
        error
        Why do I get an error?""",
    ),
    (
        "a full queue",
        "The queue is full. Wait as Retry-After says, or raise max_queue in config.json.",
        """Why do I get 429?
        What does error 429 mean?
        Too many requests
        What is max_queue?
        What does Retry-After mean?
        error 429
        Why is my request refused?
        The queue is full""",
    ),
    (
        "LM Studio",
        "Yes. `python helper_tools/mlx_lmstudio_linker.py link-all` links the models of both.",
        """Can I use my LM Studio models?
        Does {r} work with LM Studio?
        How do I share models with LM Studio?
        lm studio
        What does mlx_lmstudio_linker.py do?
        How do I link LM Studio models?""",
    ),
    (
        "Ollama",
        "MLX Router serves MLX models through OpenAI's API; it does not use Ollama.",
        """Does {r} work with Ollama?
        Is {r} like Ollama?
        What is the difference to Ollama?
        ollama
        Can I use Ollama models?
        Do I need Ollama?""",
    ),
    (
        "a bigger model",
        "Any chat model from mlx-community on Hugging Face is a good start, such as a small Qwen3"
        " in 4 bit.",
        """Which model should I use?
        Can you recommend a model?
        What is a good first model?
        Which model is best?
        recommend a model
        What model do you recommend?
        Which model should I download?
        What is a good small model?""",
    ),
]
