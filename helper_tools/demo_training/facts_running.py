"""Facts about installing, starting, configuring and watching MLX Router."""

RUNNING: list[tuple[str, str, str]] = [
    (
        "what MLX Router is",
        "MLX Router is an OpenAI-compatible server and Python library that serves every MLX model"
        " on a machine behind one port.",
        """What is {r}?
        what is mlx router
        What's MLX Router?
        Tell me about {r}.
        Explain {r}.
        What does {r} do?
        What is {r} for?
        Describe {r}.
        Describe MLX Router in one sentence.
        Give me a summary of {r}.
        What can {r} do?
        Why should I use {r}?
        What is this project?
        What is this program?
        What is this software?
        mlx router""",
    ),
    (
        "how to start the server",
        "Run `uv run mlx-router`. Add `--demo` to try it with the built-in model, or"
        " `--config FILE` to use your settings.",
        """How do I start {r}?
        How to start the server?
        How do I run {r}?
        How can I launch {r}?
        Start command?
        What is the command to start {r}?
        Which command runs {r}?
        How do I get started?
        getting started
        How do I begin with {r}?
        How to run mlx-router
        how do i use {r}?
        How do I boot the server?
        quick start
        first steps""",
    ),
    (
        "what the demo mode is",
        "`uv run mlx-router --demo` serves a tiny built-in model with no download and no"
        " configuration.",
        """What does --demo do?
        What is the demo mode?
        How do I start the demo?
        How can I try {r} without a model?
        Can I try it without downloading a model?
        What is mlx-router --demo?
        How do I run the demo?
        demo mode
        Is there a demo?
        the --demo flag""",
    ),
    (
        "the default port",
        "The default port is 8800. Use `-p PORT` to change it.",
        """What is the default port?
        Which port does {r} use?
        What port is {r} on?
        On which port does {r} listen?
        default port
        How do I change the port?
        Can I use another port?
        port number?
        How to set the port
        What port do I connect to?
        The port is already in use
        change port
        How can I run {r} on port 9000?""",
    ),
    (
        "the address of the API",
        "The API is at http://127.0.0.1:8800/v1 by default.",
        """What is the base URL?
        What is the API address?
        What is the URL of {r}?
        base_url?
        base url
        Where is the API?
        Which URL do I use?
        What address does {r} have?
        Where do I connect?
        Where can I reach {r}?
        What is the server address?
        api url""",
    ),
    (
        "how to add a model",
        "Put the model's folder in ~/models, or set MLX_MODEL_DIR or model_directory in"
        " config.json. It is found without a restart.",
        """How do I add a model?
        How can I add a new model to {r}?
        How do I install a model?
        Where do I put my models?
        Where do models go?
        Where are models stored?
        Add a model
        How to add models
        How do I load my own model?
        How do I use another model?
        Where should the model folder be?
        What is the model directory?
        How do I set the model directory?
        model_directory
        What does MLX_MODEL_DIR do?
        Can I add a real model?
        How do I make {r} find my models?
        where does {r} look for models?
        Which folder are the models in?""",
    ),
    (
        "whether a restart is needed",
        "No. New models appear and removed ones vanish without a restart.",
        """Do I need to restart after adding a model?
        Must I restart {r} to see a new model?
        Is a restart needed?
        Does {r} find new models by itself?
        Do I have to restart {r}?
        restart needed for new models?
        Are new models found automatically?
        What happens when I delete a model?""",
    ),
    (
        "how to download a model",
        "Use `python helper_tools/mlx_downloader.py MODEL` to download an MLX model from"
        " Hugging Face into ~/models.",
        """How do I download a model?
        How do I get a model from Hugging Face?
        Where can I download models?
        Can {r} download models?
        download a model
        Which tool downloads models?
        How to pull a model
        How do I fetch a model from huggingface?
        Is there a downloader?
        What does mlx_downloader.py do?""",
    ),
    (
        "whether internet is needed",
        "No. MLX Router works offline, and downloads are off by default.",
        """Does {r} need internet?
        Do I need an internet connection?
        Does {r} work offline?
        Can I use it offline?
        Is {r} private?
        Does it send my data anywhere?
        Do my chats leave my machine?
        Is an internet connection required?
        offline use
        Is my data safe with {r}?
        Does {r} call the cloud?""",
    ),
    (
        "the hardware",
        "MLX Router runs on Apple silicon with Metal. Linux works too, on the CPU or with CUDA.",
        """What hardware do I need?
        Which hardware does {r} support?
        Does {r} run on Linux?
        Does {r} need a Mac?
        Does it need a GPU?
        Can I run it on a Mac?
        system requirements
        What are the requirements?
        Does {r} work on Apple silicon?
        Which machines are supported?
        Does it work with CUDA?
        On which computers does {r} run?
        Can I run {r} on an M1?""",
    ),
    (
        "Windows support",
        "Windows is not supported. Use a Mac with Apple silicon, or Linux.",
        """Does {r} run on Windows?
        Can I use {r} on Windows?
        Is Windows supported?
        Windows?
        How do I install {r} on windows 11?
        Will it work on my windows pc?""",
    ),
    (
        "the licence",
        "MLX Router is free software under the MIT licence.",
        """What is the license?
        What is the licence of {r}?
        Which license does {r} have?
        Is {r} open source?
        Is {r} free?
        How much does {r} cost?
        What does {r} cost?
        Can I use {r} at work?
        license
        Is it free software?
        Is it MIT?""",
    ),
    (
        "config.json",
        "config.json holds the settings: defaults, server and models. Without it MLX Router uses"
        " its defaults.",
        """What is config.json?
        What is the config file?
        How do I configure {r}?
        Where are the settings?
        How do I change the settings?
        What goes into config.json?
        Do I need a config file?
        configuration
        What is in the configuration file?
        How can I configure {r}?
        config.json
        What sections does config.json have?""",
    ),
    (
        "how to check the configuration",
        "Run `mlx-router config check`. It names every unknown key or wrong value.",
        """How do I check my config?
        How do I validate config.json?
        Is my config file right?
        Can {r} check my configuration?
        validate config
        Is there an error in my config.json?
        How can I test my settings?
        config check""",
    ),
    (
        "how to reload the configuration",
        "Run `mlx-router reload`, or send SIGHUP. A broken file changes nothing.",
        """How do I reload the config?
        Can I change settings without a restart?
        How do I apply a new config.json?
        reload configuration
        How does hot reload work?
        What does mlx-router reload do?
        How do I re-read the config file?
        What happens if the new config is broken?""",
    ),
    (
        "how to stop the server",
        "Press Ctrl-C. Answers under way finish first; a second Ctrl-C stops at once.",
        """How do I stop {r}?
        How do I stop the server?
        How can I shut down {r}?
        How to quit
        How do I exit?
        stop the server
        How do I kill the server?
        What does Ctrl-C do?
        How do I turn {r} off?
        How do I end {r}?
        shutdown""",
    ),
    (
        "the logs",
        "Logs go to the terminal and to logs/mlx_router.log.",
        """Where are the logs?
        Where is the log file?
        Where does {r} write its logs?
        How do I see the logs?
        log file
        Is there a log?
        Where can I find error messages?
        What is logs/mlx_router.log?
        How can I read the logs of {r}?
        show logs""",
    ),
    (
        "how to run it as a service",
        "Run install-launchd.sh on a Mac. It starts MLX Router at login, and needs no sudo.",
        """How do I run {r} as a service?
        How do I start {r} at login?
        Can it start automatically?
        How do I install the macOS service?
        What does install-launchd.sh do?
        launchd
        How do I keep {r} running in the background?
        autostart
        Can {r} start at boot?""",
    ),
    (
        "the hub page",
        "Open http://127.0.0.1:8800/hub/ to see the models, memory, live requests and logs.",
        """What is the hub?
        Is there a status page?
        Is there a web interface?
        How do I open the dashboard?
        Where can I see what is running?
        What is /hub/?
        Does {r} have a web UI?
        status page
        dashboard
        How do I watch the server in a browser?
        Where do I see live requests?""",
    ),
    (
        "health checks",
        "GET /health is a light check. GET /v1/health adds the models, memory and pressure.",
        """How do I check that {r} is healthy?
        Is there a health check?
        What is /health?
        What is /v1/health?
        health endpoint
        How do I know that {r} is running?
        Which endpoint shows the health?
        How can I monitor the health of the server?
        Is the server up?""",
    ),
    (
        "metrics",
        "GET /metrics gives Prometheus metrics.",
        """Does {r} have metrics?
        How do I get metrics?
        What is /metrics?
        Does it support Prometheus?
        prometheus
        How do I monitor {r}?
        Where are the metrics?
        Can I use Grafana with {r}?
        metrics endpoint""",
    ),
    (
        "the API documentation",
        "Swagger UI is at /docs and ReDoc at /redoc.",
        """Where is the API documentation?
        Is there a Swagger UI?
        Where are the docs?
        What is /docs?
        What is /redoc?
        swagger
        documentation
        Where can I read the documentation?
        Does {r} have API docs?
        How do I see the OpenAPI page?""",
    ),
    (
        "the command line",
        "The commands are serve, status, models, load-model, unload-model, reload, watch and"
        " shutdown.",
        """Which commands are there?
        What commands does {r} have?
        List the commands.
        What can I do on the command line?
        CLI commands
        How do I use the command line?
        Which subcommands does mlx-router have?
        mlx-router help""",
    ),
    (
        "API keys",
        "No key is needed by default. Set api_keys in config.json to require one.",
        """Do I need an API key?
        Which API key do I use?
        How do I set an API key?
        Is an API key required?
        api key
        How do I protect {r} with a key?
        How do I add authentication?
        What is the password?
        Does {r} have authentication?
        How can I secure the server?
        api_keys""",
    ),
    (
        "use from another machine",
        "MLX Router listens on all interfaces; use your machine's IP address and port 8800."
        " Set api_keys first.",
        """Can I use {r} from another computer?
        How do I reach {r} from my phone?
        Can other machines connect?
        How do I use it over the network?
        How do I use {r} in my LAN?
        remote access
        Can I connect from another device?
        Does {r} listen on all interfaces?""",
    ),
]
