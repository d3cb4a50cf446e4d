"""The contract between the runtime and an engine.

An engine knows token ids only; text is made outside it by the model's :class:`TextCodec`. Every
method of an :class:`Engine` is called on one thread, the model's own, from load to close. A codec
is used on any thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mlx_router.domain import ChatPrompt, FinishReason, ModelCard, SamplingOptions


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling of one sequence, every value decided. ``temperature`` 0 is greedy; ``top_k`` 0,
    ``top_p`` 1 and ``min_p`` 0 switch those filters off; penalties 0 (repetition: 1) likewise."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None


class Constraint(Protocol):
    """What an answer must look like. A codec makes it; its engine enforces it, and is the only one
    to look inside. ``tool_format``: the family that reads the calls of this answer; None: the
    model's own."""

    @property
    def tool_format(self) -> str | None: ...


class Media(Protocol):
    """The images of a prompt as tensors. A codec makes them; its engine is the only one to look
    inside."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt as a model reads it: token ids, an image's among them, and the images.

    ``boundaries``: numbers of tokens, ascending, after which other prompts are likely to go on in
    another way: what comes before the first message of the user, and all messages (what follows
    only asks for the answer).
    """

    ids: list[int]
    media: Media | None = None
    boundaries: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """One sequence to generate. ``prompt`` holds at least one id, all below the vocabulary size
    (checked before: MLX does not check, and an id out of range corrupts memory). A token of
    ``stop_ids`` ends it; they are the codec's ``eos_ids``, or none. ``fork_of``: a job that was
    added before, with the same prompt, which is then computed once for both. ``media`` belongs to
    the prompt. ``cache_scope``: prompts are reused among jobs of the same scope only;
    ``boundaries`` of the prompt are as in :class:`Encoded`."""

    id: int
    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling
    logprobs: int | None = None
    stop_ids: frozenset[int] = frozenset()
    constraint: Constraint | None = None
    fork_of: int | None = None
    media: Media | None = None
    cache_scope: str = ""
    boundaries: tuple[int, ...] = ()


@dataclass(slots=True)  # one is made per token, and freezing would cost six times as much
class StepResult:
    """One new token of a job, or, with ``token`` None, the job's failure (``error``) or the
    ``vector`` of its prompt: little-endian float32, of length 1.

    ``finish`` STOP means that ``token`` is an end-of-sequence token, which is not part of the
    text; ``incomplete``: the grammar failed, and the text is cut off. ``cached_tokens`` on the
    first token: prompt tokens reused, not computed.
    """

    job_id: int
    token: int | None
    finish: FinishReason | None = None
    logprob: float | None = None
    top_logprobs: Sequence[tuple[int, float]] = ()
    cached_tokens: int = 0
    error: str | None = None
    vector: bytes | None = None
    incomplete: bool = False


@dataclass(frozen=True, slots=True)
class BatchTrial:
    """Whether a model computes in a batch what it computes alone; ``reason``: why it does not.
    ``versions`` are those of the libraries that it was tried with: it says nothing of others.
    ``lasting``: another trial would end the same; else something failed that may pass."""

    batches: bool
    reason: str | None
    versions: str
    lasting: bool = True


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What an engine knows after loading. ``memory_bytes`` is what the load added;
    ``cache_bytes`` what the KV cache of a conversation of the card's ``usual_tokens`` will take,
    None if it cannot be told.

    ``batch_trial``: None if the engine makes none. ``vector_size``: numbers in an embedding, None
    if the model makes none. ``max_positions``: a longer prompt would read beyond the model's table
    of positions; None if it has no such table.
    """

    vocab_size: int
    memory_bytes: int
    cache_bytes: int | None = None
    batch_trial: BatchTrial | None = None
    vector_size: int | None = None
    max_positions: int | None = None

    @property
    def batches(self) -> bool:
        """Whether its answers are computed together."""
        return self.batch_trial is None or self.batch_trial.batches


class Engine(Protocol):
    """A model that can generate. One thread makes all calls; none of them may block for input."""

    def load(self) -> LoadedModel:
        """Load the weights; raises ModelLoadFailed or ModelCorrupt."""

    def warm_up(self, tokens: int) -> None:
        """Generate a few tokens, so that the first answer is not slow."""

    def add(self, job: Job) -> None:
        """Queue a job. Its tokens come from later steps."""

    def abort(self, job_id: int) -> None:
        """Drop a job before the next step; unknown ids are ignored."""

    def step(self) -> list[StepResult]:
        """One decoding step for all jobs, and at most one slice of a text and one of a prompt with
        images, or one of these. Never raises for the fault of one job: that job's result carries
        ``error``."""

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""

    def memory_bytes(self) -> int:
        """Bytes held now: weights and caches."""

    def drop_caches(self) -> None:
        """Free what is held only to be faster: memory is short. Jobs under way go on."""

    def close(self) -> None:
        """Give all memory back. The engine is of no use afterwards."""


class Detokenizer(Protocol):
    """Token ids to text, incrementally; a fresh one for each sequence."""

    def add(self, token: int) -> str:
        """The text that has become certain with this token; may be empty."""

    def finish(self) -> str:
        """What was held back; an incomplete character is dropped."""


@dataclass(frozen=True, slots=True)
class OutputMarkers:
    """How a model's text marks what is not content. None: the model has no such thing.

    ``tool_format`` names a family of :mod:`mlx_router.parsing` (``hermes``, …).
    """

    think_start: str | None = None
    think_end: str | None = None
    tool_format: str | None = None


class TextCodec(Protocol):
    """Text to ids and back for one model; safe to use from several threads at once. ``sampling``
    is what the model's makers advise."""

    markers: OutputMarkers
    eos_ids: frozenset[int]
    sampling: SamplingOptions

    def encode_chat(self, prompt: ChatPrompt, *, scope: str | None = None) -> Encoded:
        """Render with the model's chat template and tokenise. Raises InvalidRequest. ``scope``:
        what is tokenised may be kept for prompts of the same scope, as :class:`Job` has it; None:
        for no other."""

    def constraint(self, prompt: ChatPrompt, prompt_ids: Sequence[int]) -> Constraint | None:
        """What the answer must look like, as the prompt's response_format and tools say; None:
        anything. Compiles, which may take seconds. Raises InvalidRequest for a schema that cannot
        be enforced."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...

    def token_bytes(self, token_id: int) -> bytes:
        """What one token stands for in UTF-8; it may be a part of a character. Empty for an id in
        the padding of the vocabulary."""

    def detokenizer(self) -> Detokenizer: ...

    def starts_in_reasoning(self, prompt_ids: Sequence[int]) -> bool:
        """Whether the prompt ends inside an open thinking block."""


class EngineFactory(Protocol):
    """How the runtime gets an engine and a codec for a model; the two may load side by side."""

    def engine(self, card: ModelCard) -> Engine:
        """Call it on the engine's own thread: the first one imports what engines are made of."""

    def codec(self, card: ModelCard) -> TextCodec:
        """Blocks while it reads files: call it on a CPU thread."""
