"""The keys that config files of the neighbouring tools have, and what each becomes.

Three kinds of files: the models.yaml of an orchestrator of several mlx-openai-servers, the hub.yaml
of its successor, and the config.yaml that mlx-openai-server itself starts several models from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "whole", "number", "flag", "any"]


@dataclass(frozen=True, slots=True)
class Key:
    """A key's kind of value; the setting ``to`` that it becomes, times ``factor``; or ``why`` it
    has no counterpart. With neither, the converter knows it by name."""

    kind: Kind
    to: str = ""
    why: str = ""
    factor: float = 1.0


_PORTS = "one port serves all models, and clients name the model they want"
_LOGS = "one log for all models, in server.log_dir; each line of a request has its id"
_DETECTED = "found out from the model's own files"
_IMAGES = "MLX Router makes no images"
_KEPT_PROMPTS = "computed prompts are kept by themselves; see prefix_cache"

TOP = {
    "host": Key("text", to="server.ip"),
    "port": Key("whole", to="server.port"),
    "log_path": Key("text"),
    "log_file": Key("text"),
    "log_level": Key("text"),
    "base_path": Key("text"),
    "enable_status_page": Key("flag"),
    "models": Key("any"),
    "groups": Key("any"),
    "server": Key("any"),
    "no_log_file": Key("flag", why=_LOGS),
    "starting_port": Key("whole", why=_PORTS),
    "model_starting_port": Key("whole", why=_PORTS),
}

GROUP = {
    "name": Key("text"),
    "max_loaded": Key("whole", to="max_loaded"),
    "idle_unload_trigger_min": Key("number", to="idle_unload_minutes"),
}

MODEL = {
    "name": Key("text"),
    "served_model_name": Key("text"),
    "model_id": Key("text"),
    "model_path": Key("text"),
    "model_type": Key("text"),
    "default": Key("flag"),
    "is_default_model": Key("flag"),
    "jit_enabled": Key("flag"),
    "on_demand": Key("flag"),
    "group": Key("text"),
    "kv_bits": Key("whole"),
    "draft_model_path": Key("text"),
    "auto_unload_minutes": Key("number", to="ttl_seconds", factor=60),
    "on_demand_idle_timeout": Key("number", to="ttl_seconds"),
    "context_length": Key("whole", to="context_length"),
    "default_max_tokens": Key("whole", to="max_tokens"),
    "default_temperature": Key("number", to="temp"),
    "default_top_p": Key("number", to="top_p"),
    "default_top_k": Key("whole", to="top_k"),
    "default_min_p": Key("number", to="min_p"),
    "default_repetition_penalty": Key("number", to="repetition_penalty"),
    "default_presence_penalty": Key("number", to="presence_penalty"),
    "host": Key("text", why=_PORTS),
    "port": Key("whole", why=_PORTS),
    "log_file": Key("text", why=_LOGS),
    "log_level": Key("text", why=_LOGS),
    "no_log_file": Key("flag", why=_LOGS),
    "debug": Key("flag", why="for all models together: server.debug"),
    "enable_status_page": Key("flag", why="the status page is at /hub/"),
    "max_concurrency": Key(
        "whole", why="requests for a model are computed together, defaults.max_batch_size at most"
    ),
    "queue_size": Key("whole", why="for every model the same: server.max_queue"),
    "queue_timeout": Key("number", why="a whole answer is limited instead: defaults.timeout"),
    "startup_timeout": Key("number", why="for every model the same: defaults.load_timeout"),
    "enable_auto_tool_choice": Key("flag", why=_DETECTED),
    "tool_call_parser": Key("text", why=_DETECTED),
    "reasoning_parser": Key("text", why=_DETECTED),
    "message_converter": Key("text", why=_DETECTED),
    "chat_template_file": Key(
        "text", why="put the template into the model's folder, as chat_template.jinja"
    ),
    "trust_remote_code": Key(
        "flag",
        why="hardly a model needs code of its own, so it stays off; if `mlx-router models` asks "
        "for it, and you know the author, set trust_remote_code for that model",
    ),
    "lora_paths": Key("any", why="a text model's adapter is named by adapter_path in its entry"),
    "lora_scales": Key("any", why="an adapter is used as it was trained; see adapter_path"),
    "quantize": Key("whole", why=_IMAGES),
    "config_name": Key("text", why=_IMAGES),
    "disable_auto_resize": Key("flag", why="images are scaled as each model was trained"),
    "num_draft_tokens": Key("whole", why="how many tokens are drafted follows what pays"),
    "kv_group_size": Key("whole", why="fixed; see kv_bits"),
    "quantized_kv_start": Key("whole", why="fixed; see kv_bits"),
    "batch_completion_size": Key("whole", why="for every model the same: defaults.max_batch_size"),
    "batch_prefill_size": Key("whole", why="prompts take turns by themselves"),
    "batch_prefill_step_size": Key(
        "whole", why="for every model the same: defaults.prefill_step_size"
    ),
    "disable_batching": Key("flag", why="a model that cannot batch is noticed when it is loaded"),
    "prompt_cache_size": Key("whole", why=_KEPT_PROMPTS),
    "prompt_cache_max_bytes": Key("whole", why=_KEPT_PROMPTS),
    "prompt_cache_dir": Key("text", why=_KEPT_PROMPTS),
    "prompt_cache_auto_segment": Key("flag", why=_KEPT_PROMPTS),
    "default_xtc_probability": Key("number", why="XTC sampling is not supported"),
    "default_xtc_threshold": Key("number", why="XTC sampling is not supported"),
    "default_seed": Key("whole", why="a seed is a matter of each request"),
    "default_repetition_context_size": Key("whole", why="no setting; see repetition_penalty"),
    "rerank_batch_size": Key("whole", why="MLX Router does not rerank"),
}

# Types of models that are served, and why the others are not.
SERVED_TYPES = ("lm", "multimodal", "vlm", "embeddings")
UNSERVED_TYPES = {
    "image-generation": _IMAGES,
    "image-edit": _IMAGES,
    "whisper": "MLX Router does not transcribe",
    "rerank": "MLX Router does not rerank",
}
