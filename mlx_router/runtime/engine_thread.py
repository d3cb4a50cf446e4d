"""The thread that owns a model: it loads it, steps it and frees it, and nothing else touches it."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from mlx_router.engine.base import Engine, Job, LoadedModel, StepResult
from mlx_router.errors import EngineFailed, ModelLoadFailed, RouterError

log = logging.getLogger(__name__)


# --- what the thread is told ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Add:
    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class Abort:
    job_id: int


@dataclass(frozen=True, slots=True)
class DropCaches:
    pass


@dataclass(frozen=True, slots=True)
class Close:
    pass


# --- what it reports ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loaded:
    model: LoadedModel


@dataclass(frozen=True, slots=True)
class LoadFailed:
    error: RouterError


@dataclass(frozen=True, slots=True)
class Stepped:
    """All new tokens of one step: one hand-over a step costs a quarter of one a token."""

    results: Sequence[StepResult]


@dataclass(frozen=True, slots=True)
class Died:
    """The engine failed beyond repair; what ran on it is lost and its memory is given back."""

    error: RouterError


@dataclass(frozen=True, slots=True)
class Closed:
    """The memory is back and the thread is about to end."""


Report = Loaded | LoadFailed | Stepped | Died | Closed


class EngineThread:
    """``make_engine`` and ``report`` are called on this thread; ``report`` must not block. After
    Closed nothing is reported; Closed comes last and always, also after LoadFailed and Died."""

    def __init__(
        self,
        name: str,
        make_engine: Callable[[], Engine],
        report: Callable[[Report], None],
        *,
        warm_up_tokens: int = 0,
        step_lock: threading.Lock | None = None,
    ) -> None:
        self._make_engine = make_engine
        self._engine: Engine | None = None
        self._report = report
        self._warm_up_tokens = warm_up_tokens
        # A lock shared by all models serialises their steps, where a GPU cannot run two at once.
        self._stepping: AbstractContextManager[object] = step_lock or nullcontext()
        self._inbox: queue.SimpleQueue[Add | Abort | DropCaches | Close] = queue.SimpleQueue()
        # A daemon: a load that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=f"engine {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, *jobs: Job) -> None:
        """Jobs that are added together are in the engine before its next step."""
        self._inbox.put(Add(jobs))

    def abort(self, job_id: int) -> None:
        self._inbox.put(Abort(job_id))

    def drop_caches(self) -> None:
        """Free what is held only to be faster, between two steps."""
        self._inbox.put(DropCaches())

    def close(self) -> None:
        """Ask for the end: what runs is dropped, the memory is given back, Closed is reported."""
        self._inbox.put(Close())

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end; whether it came within ``timeout`` seconds."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            engine = self._load()
            if engine is not None:
                self._serve(engine)
        finally:
            try:
                if self._engine is not None:
                    self._engine.close()
            except Exception:
                log.exception("freeing a model failed")
            self._engine = engine = None
            self._report(Closed())

    def _load(self) -> Engine | None:
        try:
            # Made here too, since the first one imports MLX, which takes a second. Not under the
            # lock: a load may take minutes, or hang, and others must go on.
            engine = self._engine = self._make_engine()
            loaded = engine.load()
            with self._stepping:
                engine.warm_up(self._warm_up_tokens)
        except RouterError as error:
            self._report(LoadFailed(error.with_traceback(None)))
            return None
        except BaseException as error:
            log.exception("loading a model failed")
            reason = f"Loading the model failed ({type(error).__name__}); the log has the details."
            self._report(LoadFailed(ModelLoadFailed(reason)))
            return None
        self._report(Loaded(loaded))
        return engine

    def _serve(self, engine: Engine) -> None:
        try:
            while self._take_messages(engine):
                with self._stepping:
                    results = engine.step()
                if results:
                    self._report(Stepped(results))
        except BaseException as error:
            log.exception("an engine died")
            reason = f"The model's engine failed ({type(error).__name__}); it will be loaded again."
            self._report(Died(EngineFailed(reason)))

    def _take_messages(self, engine: Engine) -> bool:
        """Carry out all that is in the inbox; wait for a message if there is nothing to compute.
        False: it is time to end."""
        while not (engine.busy and self._inbox.empty()):
            message = self._inbox.get()
            if isinstance(message, Add):
                for job in message.jobs:
                    engine.add(job)
            elif isinstance(message, Abort):
                engine.abort(message.job_id)
            elif isinstance(message, DropCaches):
                engine.drop_caches()
            else:
                return False
        return True
