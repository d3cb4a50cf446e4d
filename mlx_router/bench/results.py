"""What was measured, as it comes in, and as JSON. docs/bench.md describes the JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mlx_router.bench.target import Answer, Subject

FORMAT = 1  # of the JSON; another number if a name or a meaning changes


def median(values: Iterable[float | None]) -> float | None:
    """Of the values that there are; None without any."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured. ``prompts`` are lengths in tokens, ``streams`` how many answers are decoded
    together, ``tokens`` the length of each. ``runs`` of each measurement; None: up to three, fewer
    of what takes long. A prompt that would take more than ``longest_prompt`` seconds is left out;
    None: none is."""

    prompts: Sequence[int]
    streams: Sequence[int]
    tokens: int
    runs: int | None = None
    longest_prompt: float | None = None


@dataclass(slots=True)
class Prompt:
    """A prompt of ``tokens`` tokens that the model has not seen, and right after it the same one
    with a little more at its end."""

    tokens: int
    cold: list[Answer] = field(default_factory=list)
    warm: list[Answer] = field(default_factory=list)

    @property
    def cold_seconds(self) -> float | None:
        return median(answer.first_token_seconds for answer in self.cold)

    @property
    def warm_seconds(self) -> float | None:
        return median(answer.first_token_seconds for answer in self.warm)

    @property
    def prefill_rate(self) -> float | None:
        """Prompt tokens per second, of those that were computed."""
        return median(
            (answer.prompt_tokens - answer.cached_tokens) / answer.first_token_seconds
            for answer in self.cold
        )

    @property
    def reused(self) -> float | None:
        """Tokens of the second prompt that were not computed again."""
        return median(answer.cached_tokens for answer in self.warm)

    @property
    def warm_to_cold(self) -> float | None:
        """How long the second takes, as a share of the first."""
        cold, warm = self.cold_seconds, self.warm_seconds
        return warm / cold if cold and warm is not None else None

    def as_json(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.tokens,
            "cold": {
                "first_token_seconds": self.cold_seconds,
                "prefill_tokens_per_second": self.prefill_rate,
                "runs": [_first(answer) for answer in self.cold],
            },
            "warm": {
                "first_token_seconds": self.warm_seconds,
                "cached_tokens": self.reused,
                "runs": [_first(answer) for answer in self.warm],
            },
            "warm_to_cold": self.warm_to_cold,
        }


@dataclass(slots=True)
class Together:
    """Answers that are asked for at the same moment, ``streams`` in each run."""

    streams: int
    runs: list[list[Answer]] = field(default_factory=list)

    @property
    def rate(self) -> float | None:
        """Tokens per second of all streams together."""
        return median(map(_rate, self.runs))

    @property
    def stream_rate(self) -> float | None:
        """Tokens per second of one stream, from its first token on."""
        return median(map(_stream_rate, self.runs))

    def as_json(self) -> dict[str, Any]:
        return {
            "streams": self.streams,
            "tokens_per_second": self.rate,
            "tokens_per_second_per_stream": self.stream_rate,
            "runs": [
                {
                    "tokens": sum(answer.completion_tokens for answer in run),
                    "seconds": _seconds(run),
                    "tokens_per_second": _rate(run),
                    "tokens_per_second_per_stream": _stream_rate(run),
                }
                for run in self.runs
            ],
        }


@dataclass(slots=True)
class Measured:
    """All about one model. ``load_seconds``: one for each run."""

    subject: Subject
    load_seconds: list[float] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    streams: list[Together] = field(default_factory=list)

    @property
    def decode_rate(self) -> float | None:
        """Tokens per second of a stream that is alone."""
        return next((each.stream_rate for each in self.streams if each.streams == 1), None)

    def as_json(self) -> dict[str, Any]:
        subject = asdict(self.subject)
        return {
            "model": subject.pop("id"),
            **{key: subject[key] for key in _DESCRIBED},
            "load": {"seconds": median(self.load_seconds), "runs": self.load_seconds},
            "prompts": [prompt.as_json() for prompt in self.prompts if prompt.cold],
            "decode_tokens_per_second": self.decode_rate,
            "streams": [each.as_json() for each in self.streams if each.runs],
        }


_DESCRIBED = ("architecture", "quantization", "parameters", "size_bytes", "context_length")


@dataclass(slots=True)
class Swap:
    """From asking ``into`` while ``out`` holds the memory, to its first token; seconds."""

    out: str
    into: str
    seconds: list[float] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "from": self.out,
            "to": self.into,
            "seconds": median(self.seconds),
            "runs": self.seconds,
        }


@dataclass(slots=True)
class Results:
    """``notes`` are sentences on what was left out, and ``failures`` on what went wrong.
    ``about`` is the machine and what runs on it."""

    plan: Plan
    about: dict[str, Any]
    models: list[Measured] = field(default_factory=list)
    swaps: list[Swap] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    interrupted: bool = False

    def as_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            **self.about,
            "settings": asdict(self.plan),
            "models": [model.as_json() for model in self.models],
            "swaps": [swap.as_json() for swap in self.swaps if swap.seconds],
            "notes": self.notes,
            "failures": self.failures,
            "interrupted": self.interrupted,
        }


def _first(answer: Answer) -> dict[str, Any]:
    return {
        "first_token_seconds": answer.first_token_seconds,
        "prompt_tokens": answer.prompt_tokens,
        "cached_tokens": answer.cached_tokens,
    }


def _seconds(run: Sequence[Answer]) -> float:
    return max(answer.last for answer in run) - min(answer.sent for answer in run)


def _rate(run: Sequence[Answer]) -> float:
    return sum(answer.completion_tokens for answer in run) / _seconds(run)


def _stream_rate(run: Sequence[Answer]) -> float | None:
    return median(answer.decode_rate for answer in run)
