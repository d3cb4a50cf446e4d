"""Every setting of MLX Router, its type, its default and its bounds.

The descriptions are the documentation: the JSON Schema, the sample config.json and the tables of
docs/configuration.md are made from this file (see :mod:`mlx_router.config.reference`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from mlx_router.config.clashes import clashes
from mlx_router.config.fields import (
    ApiKeys,
    ChatTemplate,
    Gigabytes,
    OnOff,
    Percent,
    Seconds,
    Section,
    Text,
    TextOrList,
    Tokens,
    expand,
)
from mlx_router.config.media import MediaSettings
from mlx_router.config.prefix_cache import PrefixCacheSettings
from mlx_router.domain import ContextOverflow, Pressure, SamplingOptions


class DefaultSettings(Section):
    """Limits and behaviour that hold for every model."""

    max_tokens: Tokens = Field(
        default=4096,
        description="Tokens an answer may have, where neither request nor model says less.",
    )
    timeout: Seconds = Field(default=120.0, description="Seconds for one whole answer.")
    cache_size: int = Field(
        default=2, ge=1, le=64, description="Models kept loaded at the same time."
    )
    memory_threshold_gb: Gigabytes | None = Field(
        default=None,
        description="Memory to keep available, in GB: pressure begins below 0.8 of it. Absent: "
        "0.625 of the machine's memory.",
    )
    safety_margin: float = Field(
        default=1.2,
        ge=0.1,
        le=10,
        description="A load needs its estimate times this (usual: 0.2 to 1.5).",
    )
    swap_critical_percent: Percent = Field(
        default=90.0, description="Swap use (percent) above which memory pressure is critical."
    )
    swap_high_percent: Percent = Field(
        default=75.0,
        validate_default=True,
        description="Swap use (percent) above which memory pressure is high.",
    )
    stream: bool = Field(default=False, description="Stream answers to requests that do not say.")
    stream_chunk_size: int = Field(
        default=8,
        ge=1,
        le=1024,
        description="Tokens per chunk at most; a chunk leaves after 50 ms anyway.",
    )
    streaming_format: Literal["sse", "json_lines", "json_array"] = Field(
        default="sse", description="How streamed answers are written."
    )
    warmup_tokens: int = Field(
        default=5,
        ge=0,
        le=1000,
        description="Tokens generated after a load, so the first answer is fast.",
    )
    enable_function_calling: bool = Field(default=True, description="Serve requests with tools.")
    model: Text | None = Field(
        default=None, description="Default model, loaded at start (default_model means the same)."
    )
    model_directory: TextOrList = Field(
        default_factory=lambda: ["$HOME/models"],
        min_length=1,
        description="Folder or folders with models; ~ and variables expand.",
    )
    state_directory: Text = Field(
        default="$HOME/.local/state/mlx-router",
        description="Folder for what is remembered from one start to the next: models as measured.",
    )
    allow_downloads: bool = Field(
        default=False,
        description="Fetch a model from the Hugging Face Hub when a request asks for it.",
    )
    hf_cache: bool = Field(
        default=False, description="Also serve models of ~/.cache/huggingface/hub."
    )
    lmstudio: bool = Field(default=False, description="Also serve models of LM Studio's folder.")
    wired_limit: Literal["off", "recommended"] | Gigabytes = Field(
        default="off",
        description="Metal's wired memory: off, the recommended size, or a size in GB.",
    )
    serialize_steps: bool = Field(
        default=False,
        description="Let one model compute at a time (where two at once prove slower).",
    )
    prefill_step_size: int = Field(
        default=512,
        ge=1,
        le=65_536,
        description="Prompt tokens computed between two decoding steps at most; beside streams "
        "only as many as take a quarter of a second, or four steps.",
    )
    prompt_lookup: bool = Field(
        default=False,
        description="Guess what a single answer repeats of its prompt, and check several tokens in "
        "one step: faster where text is copied; off again where it does not help.",
    )
    max_batch_size: int = Field(
        default=32, ge=1, le=1024, description="Answers that one model decodes together."
    )
    load_timeout: Seconds = Field(
        default=600.0, description="Seconds that loading a model may take."
    )
    context_overflow: ContextOverflow = Field(
        default="error",
        description="A chat longer than the context: error, or summarize its older messages.",
    )

    @field_validator("swap_high_percent")
    @classmethod
    def _high_is_below_critical(cls, value: float, info: ValidationInfo) -> float:
        critical = info.data.get("swap_critical_percent", 100.0)
        if value > critical:
            raise ValueError(
                f"{value:g} is not allowed; "
                f"use at most swap_critical_percent, which is {critical:g}"
            )
        return value

    def model_directories(self) -> list[Path]:
        """The model folders, absolute, with ~ and variables expanded, each once."""
        return list(dict.fromkeys(expand(folder) for folder in self.model_directory))

    def state_folder(self) -> Path:
        """The state folder, absolute, with ~ and variables expanded. It may not exist yet."""
        return expand(self.state_directory)


class ServerSettings(Section):
    """The HTTP server."""

    ip: Text = Field(
        default="0.0.0.0",  # noqa: S104  all addresses: other devices at home use it too
        description="Address to listen on; 127.0.0.1: this machine only.",
    )
    port: int = Field(
        default=8800, ge=0, le=65_535, description="Port to listen on; 0 picks a free one."
    )
    debug: bool = Field(default=False, description="Log more, for finding faults.")
    api_keys: ApiKeys = Field(
        default_factory=dict,
        repr=False,
        description="Keys clients must send, by name; a list works too.",
    )
    cors_origins: list[Text] = Field(
        default_factory=list, description="Web origins that browsers may call from; * is any."
    )
    allowed_hosts: list[Text] = Field(
        default_factory=list, description="Extra host names that requests may be addressed to."
    )
    log_dir: Text = Field(
        default="logs", description="Folder of mlx_router.log; ~ and variables expand."
    )
    max_queue: int = Field(
        default=64,
        ge=1,
        le=100_000,
        description="Requests that may wait per model; more get a 429.",
    )
    grace_seconds: float = Field(
        default=30.0, ge=0, le=3600, description="Seconds that running answers get at shutdown."
    )
    keep_alive_seconds: float = Field(
        default=15.0, ge=0.05, le=3600, description="Silence after which a stream sends a comment."
    )
    max_body_mb: float = Field(
        default=64, gt=0, le=4096, description="Largest request body, in MB."
    )

    def log_directory(self) -> Path:
        """The log folder, absolute, with ~ and variables expanded."""
        return expand(self.log_dir)


class PressureLimits(Section):
    """Largest ``max_tokens`` of an answer at each level of memory pressure."""

    normal: Tokens = Field(description="Limit while memory is plentiful.")
    moderate: Tokens = Field(description="Limit under moderate pressure.")
    high: Tokens = Field(description="Limit under high pressure.")
    critical: Tokens = Field(description="Limit under critical pressure.")

    def limit(self, pressure: Pressure) -> int:
        """The limit in tokens at this level."""
        return int(getattr(self, pressure.value))


class GroupSettings(Section):
    """What models that name this group share."""

    max_loaded: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Members loaded at the same time at most; absent: as many as cache_size lets.",
    )
    idle_unload_minutes: float | None = Field(
        default=None,
        gt=0,
        le=525_600,
        description="Unload a member after so many idle minutes; its own ttl_seconds comes first.",
    )


class ModelSettings(Section):
    """What differs for one model. Everything is optional: absent means detected or default."""

    max_tokens: Tokens | None = Field(default=None, description="Tokens an answer may have.")
    temp: float | None = Field(default=None, ge=0, le=2, description="Temperature; 0 is greedy.")
    top_p: float | None = Field(default=None, ge=0, le=1, description="Nucleus sampling; 1 is off.")
    top_k: int | None = Field(
        default=None, ge=0, le=1_000_000, description="Top-k sampling; 0 is off."
    )
    min_p: float | None = Field(default=None, ge=0, le=1, description="Min-p sampling; 0 is off.")
    repetition_penalty: float | None = Field(
        default=None, gt=0, le=10, description="Repetition penalty; 1 is off."
    )
    presence_penalty: float | None = Field(
        default=None, ge=-2, le=2, description="Presence penalty; 0 is off."
    )
    frequency_penalty: float | None = Field(
        default=None, ge=-2, le=2, description="Frequency penalty; 0 is off."
    )
    chat_template: ChatTemplate | None = Field(
        default=None, description="Chat template; absent: the model's own, which is best."
    )
    reasoning_response: OnOff | None = Field(
        default=None, description="Whether reasoning is part of the answer."
    )
    required_memory_gb: Gigabytes | None = Field(
        default=None, description="Memory it needs in GB; absent: estimated from its files."
    )
    supports_tools: bool | None = Field(default=None, description="Tool use; absent: detected.")
    supports_vision: bool | None = Field(default=None, description="Image input; absent: detected.")
    memory_pressure_max_tokens: PressureLimits | None = Field(
        default=None,
        description="Token limits by memory pressure; absent: fractions of max_tokens.",
    )
    path: Text | None = Field(
        default=None, description="Folder of the model; ~ and variables expand."
    )
    aliases: list[Text] = Field(default_factory=list, description="Further names for the model.")
    pinned: bool = Field(default=False, description="Never unload it to make room.")
    preload: bool = Field(default=False, description="Load it at start.")
    ttl_seconds: float | None = Field(
        default=None, gt=0, le=31_536_000, description="Unload it after so many idle seconds."
    )
    group: Text | None = Field(
        default=None, description="Group of `groups` that it shares limits with."
    )
    adapter_path: Text | None = Field(default=None, description="Folder of a LoRA adapter.")
    draft_model: Text | None = Field(
        default=None,
        description="Small model with the same vocabulary, by its id or folder: it drafts tokens "
        "that this one checks several at a time.",
    )
    prompt_lookup: bool | None = Field(
        default=None, description="As in defaults, for this model; absent: as there."
    )
    kv_bits: Literal[4, 8] | None = Field(
        default=None,
        description="Bits of a number in the KV cache: less memory for long prompts, but answers "
        "one at a time; absent: the model's own precision.",
    )
    context_length: Tokens | None = Field(
        default=None, description="Context in tokens, if not its own."
    )
    context_overflow: ContextOverflow | None = Field(
        default=None, description="As in defaults, for this model; a request's own word wins."
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that ships with the model. Know its author."
    )

    @field_validator("ttl_seconds")
    @classmethod
    def _pinned_models_stay(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("pinned"):
            raise ValueError("is not allowed for a pinned model, which stays: keep one of the two")
        return value

    def sampling(self) -> SamplingOptions:
        """What this entry says about sampling."""
        return SamplingOptions(
            temperature=self.temp,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
        )

    def directory(self) -> Path | None:
        """``path``, absolute, with ~ and variables expanded."""
        return None if self.path is None else expand(self.path)


class Settings(Section):
    """The whole config. ``default_model`` and ``defaults.model`` always hold the same name."""

    defaults: DefaultSettings = Field(
        default_factory=lambda: DefaultSettings(),
        description="Limits and behaviour for every model.",
    )
    server: ServerSettings = Field(
        default_factory=lambda: ServerSettings(), description="The HTTP server."
    )
    media: MediaSettings = Field(
        default_factory=lambda: MediaSettings(), description="Images and PDFs of requests."
    )
    prefix_cache: PrefixCacheSettings = Field(
        default_factory=lambda: PrefixCacheSettings(),
        description="Computed prompts that are kept.",
    )
    groups: dict[Text, GroupSettings] = Field(
        default_factory=dict, description="Limits that several models share, by the group's name."
    )
    models: dict[Text, ModelSettings] = Field(
        default_factory=dict, description="What differs for a model, by its id."
    )
    default_model: Text | None = Field(
        default=None, validate_default=True, description="The same as defaults.model."
    )

    @field_validator("models")
    @classmethod
    def _go_together(
        cls, models: dict[str, ModelSettings], info: ValidationInfo
    ) -> dict[str, ModelSettings]:
        found = clashes(models, info.data.get("groups"), info.data.get("defaults"))
        if found:
            raise ValueError("; ".join(found))
        return models

    @field_validator("default_model")
    @classmethod
    def _one_default_model(cls, value: str | None, info: ValidationInfo) -> str | None:
        defaults = info.data.get("defaults")
        other = defaults.model if isinstance(defaults, DefaultSettings) else None
        if value and other and value != other:
            raise ValueError(f"{value!r} is not allowed; defaults.model is {other!r}: keep one")
        return value or other

    def model_post_init(self, context: Any, /) -> None:
        if self.default_model != self.defaults.model:
            defaults = self.defaults.model_copy(update={"model": self.default_model})
            object.__setattr__(self, "defaults", defaults)  # frozen for everybody else

    def group_of(self, entry: ModelSettings) -> GroupSettings:
        """The group of an entry, or one that says nothing."""
        return self.groups[entry.group] if entry.group is not None else GroupSettings()

    def for_model(self, model_id: str) -> ModelSettings:
        """The entry for this model id (case does not matter), or one that says nothing."""
        if model_id in self.models:
            return self.models[model_id]
        wanted = model_id.lower()
        for name, entry in self.models.items():
            if name.lower() == wanted:
                return entry
        return ModelSettings()
