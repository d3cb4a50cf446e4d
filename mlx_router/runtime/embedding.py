"""Texts to vectors: which model, what it is given, and the jobs of a request on its engine."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

from mlx_router.domain import ModelCard, ModelKind
from mlx_router.engine.base import Job, LoadedModel, Sampling, StepResult, TextCodec
from mlx_router.errors import (
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    RequestTimeout,
    RouterError,
)
from mlx_router.runtime.limits import check_token_ids
from mlx_router.runtime.resident import Resident

if TYPE_CHECKING:
    from mlx_router.runtime.finder import Finder

log = logging.getLogger(__name__)

# Jobs of one request that the engine may hold: enough for two of its steps, and the jobs of other
# requests need not wait until a request with thousands of texts is through.
MAX_OPEN = 128

Text = str | Sequence[int]


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """``texts`` are texts, or the token ids of texts, which are taken as they are. ``dimensions``
    cuts the vectors short. ``timeout`` is in seconds for all of it."""

    texts: tuple[Text, ...]
    model: str | None = None
    dimensions: int | None = None
    timeout: float | None = None

    @classmethod
    def of(
        cls, texts: str | Sequence[Text], model: str | None, dimensions: int | None
    ) -> EmbeddingRequest:
        """From what a program says, checked. Raises InvalidRequest."""
        if not isinstance(texts, str | list | tuple):
            raise InvalidRequest("input is a text or a list of texts.", param="input")
        given = (texts,) if isinstance(texts, str) else tuple(texts)
        if not given:
            raise InvalidRequest("input must have at least one item.", param="input")
        for index, text in enumerate(given):
            is_ids = isinstance(text, list | tuple) and all(type(item) is int for item in text)
            if not isinstance(text, str) and not is_ids:
                raise InvalidRequest(
                    f"input.{index} is neither a text nor a list of token ids.",
                    param=f"input.{index}",
                )
        if dimensions is not None and type(dimensions) is not int:
            raise InvalidRequest("dimensions is a whole number.", param="dimensions")
        return cls(given, model, dimensions)


@dataclass(frozen=True)
class Embeddings:
    """The vectors of a request's texts, in their order. ``packed`` holds them as little-endian
    float32; each has the length 1, so that the cosine of two is the sum of their products."""

    model: str
    packed: tuple[bytes, ...]
    prompt_tokens: int

    @cached_property
    def vectors(self) -> list[list[float]]:
        return [unpack(vector).tolist() for vector in self.packed]


async def find_model(finder: Finder, name: str | None) -> ModelCard:
    """The model that is to embed; None: the only one that can. Raises ModelNotFound, ModelCorrupt,
    InvalidRequest."""
    if name is not None:
        card = await finder.find(name)
        if card.kind is not ModelKind.EMBEDDING:
            others = _candidates(finder)
            advice = f"; ask for {others[0].id}" if others else ", and no other model here does"
            raise InvalidRequest(
                f"{card.id} is a model of kind {card.kind} and makes no embeddings{advice}.",
                param="model",
            )
        return card
    if len(_candidates(finder)) != 1:
        await finder.refresh()
    found = _candidates(finder)
    if not found:
        raise ModelNotFound("There is no embedding model; put one into the model directory.")
    if len(found) > 1:
        names = ", ".join(card.id for card in found[:5])
        raise InvalidRequest(f"Which model? Name one in the field model: {names}.", param="model")
    return found[0]


async def embed(
    request: EmbeddingRequest,
    resident: Resident,
    executor: Executor,
    new_id: Callable[[], int],
    timeout: float,
) -> Embeddings:
    """The vectors of a request; cancelling it drops its jobs before the engine's next step.
    ``timeout``: seconds that are left. Raises InvalidRequest, RequestTimeout, EngineFailed."""
    codec, model = resident.codec, resident.model
    assert codec is not None
    assert model is not None
    loop, began = asyncio.get_running_loop(), time.perf_counter()
    if model.vector_size is None:
        raise EngineFailed(f"{resident.card.id} makes no embeddings.")
    _check_dimensions(request.dimensions, model.vector_size)
    try:
        async with asyncio.timeout(timeout):
            prepare = partial(_prompts, request.texts, codec, model, resident.card)
            prompts = await loop.run_in_executor(executor, prepare)
            if resident.ended is not None:  # meanwhile
                raise resident.ended
            packed = await _Gathering(resident, prompts, new_id).gather()
            if request.dimensions not in (None, model.vector_size):
                shorten = partial(_shortened, packed, request.dimensions)
                packed = await loop.run_in_executor(executor, shorten)
    except TimeoutError:
        raise RequestTimeout(
            f"The embeddings were not computed within {request.timeout or timeout:.3g} seconds."
        ) from None
    tokens = sum(map(len, prompts))
    seconds = time.perf_counter() - began
    log.info("%d texts embedded, %d tokens, in %.2f s", len(prompts), tokens, seconds)
    return Embeddings(resident.card.id, tuple(packed), tokens)


def unpack(vector: bytes) -> array[float]:
    """A vector of little-endian float32, which is also what every supported machine has."""
    numbers = array("f")
    numbers.frombytes(vector)
    return numbers


class _Gathering:
    """The vectors of one request, while they are computed: it owns the request's jobs."""

    def __init__(
        self, resident: Resident, prompts: Sequence[Sequence[int]], new_id: Callable[[], int]
    ) -> None:
        self._resident = resident
        self._prompts = prompts
        self._new_id = new_id
        self._waiting = deque(range(len(prompts)))
        self._open: dict[int, int] = {}  # job id -> index
        self._vectors = [b""] * len(prompts)
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def gather(self) -> list[bytes]:
        try:
            self._post()
            await self._done
            return self._vectors
        finally:
            for job_id in list(self._open):
                self._resident.drop(job_id)

    def on_result(self, result: StepResult) -> None:
        index = self._open.pop(result.job_id)
        if result.vector is None:
            self.fail(EngineFailed(f"input.{index}: {result.error}"))
            return
        self._vectors[index] = result.vector
        self._post()

    def fail(self, error: RouterError) -> None:
        if not self._done.done():
            self._done.set_exception(error)

    def _post(self) -> None:
        while self._waiting and len(self._open) < MAX_OPEN and not self._done.done():
            index = self._waiting.popleft()
            job = Job(
                id=self._new_id(), prompt=self._prompts[index], max_tokens=0, sampling=Sampling()
            )
            self._open[job.id] = index
            self._resident.answers[job.id] = self
            self._resident.thread.add(job)
        if not self._open and not self._done.done():
            self._done.set_result(None)


def _candidates(finder: Finder) -> list[ModelCard]:
    return [c for c in finder.cards() if c.usable and c.kind is ModelKind.EMBEDDING]


def _check_dimensions(dimensions: int | None, size: int) -> None:
    if dimensions is not None and not 1 <= dimensions <= size:
        raise InvalidRequest(
            f"dimensions must be 1 to {size}, the size of the model's vectors (got {dimensions}).",
            param="dimensions",
        )


def _prompts(
    texts: Sequence[Text], codec: TextCodec, model: LoadedModel, card: ModelCard
) -> list[Sequence[int]]:
    """Token ids, checked; on a CPU thread. Raises InvalidRequest, ContextLengthExceeded."""
    limit = min(card.context_length, model.max_positions or card.context_length)
    prompts: list[Sequence[int]] = []
    for index, text in enumerate(texts):
        param = "input" if len(texts) == 1 else f"input.{index}"
        ids = codec.encode(text) if isinstance(text, str) else list(text)
        if not text or not ids:
            raise InvalidRequest(f"{param} is empty: there is nothing to embed.", param=param)
        check_token_ids(ids, model.vocab_size, param)
        if len(ids) > limit:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {limit} tokens. However, {param} has "
                f"{len(ids)} tokens. Please make it shorter, or send it in parts.",
                param=param,
            )
        prompts.append(ids)
    return prompts


def _shortened(packed: Sequence[bytes], dimensions: int) -> list[bytes]:
    """The first numbers of every vector, brought back to the length 1."""
    vectors = []
    for vector in packed:
        numbers = unpack(vector)[:dimensions]
        norm = math.hypot(*numbers) or 1.0
        vectors.append(array("f", (number / norm for number in numbers)).tobytes())
    return vectors
