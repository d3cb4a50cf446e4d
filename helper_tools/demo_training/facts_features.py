"""Facts about limits, features, errors and neighbours."""

FEATURES: list[tuple[str, str, str]] = [
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
