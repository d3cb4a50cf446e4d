"""The three that are compared, behind one interface: prompts in, timed answers out.

All three hold the same model in memory at the same time, but only one is asked at a time.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.client import HOST, Answer, ask_together
from benchmarks.processes import Process, environment, free_port

OURS = "mlx-router"
MLX_LM = "mlx_lm.server"
BARE = "bare loop"

RUN_SECONDS = 900.0
_LOAD_SECONDS = 300.0
_PAUSE_SECONDS = 0.5


class WrongAnswer(Exception):
    """An answer that must not be measured."""


@dataclass(frozen=True, slots=True)
class Run:
    """Answers to prompts that were all asked at the same moment, each of ``tokens`` tokens."""

    answers: Sequence[Answer]
    tokens: int

    @property
    def throughput(self) -> float:
        """Tokens a second of all streams together, from the first request to the last token."""
        return self.tokens * len(self.answers) / max(answer.last for answer in self.answers)

    @property
    def decode_rate(self) -> float:
        """Tokens a second of the first stream, from its first token to its last. Raises
        WrongAnswer if they arrived together, as they do on an overloaded machine."""
        answer = self.answers[0]
        if answer.last <= answer.first:
            raise WrongAnswer("all tokens arrived at once; is the machine overloaded?")
        return (self.tokens - 1) / (answer.last - answer.first)

    @property
    def first_token(self) -> float:
        """Seconds to the first text of the first stream."""
        return self.answers[0].first

    @property
    def texts(self) -> list[str]:
        return [answer.text for answer in self.answers]


class Host(Protocol):
    """What a subject runs in: a :class:`benchmarks.processes.Process`, or something unknown."""

    def wait_until_healthy(self, port: int) -> None: ...

    def wait_until_idle(self) -> None: ...

    def check_openblas(self, openblas: str | None) -> None: ...


class Elsewhere:
    """A :class:`Host` that somebody else started: nothing is known of it."""

    def wait_until_healthy(self, port: int) -> None:
        """It answers already."""

    def wait_until_idle(self) -> None:
        time.sleep(_PAUSE_SECONDS)

    def check_openblas(self, openblas: str | None) -> None:
        """Whoever started it must know."""


class Subject(Protocol):
    @property
    def name(self) -> str: ...

    def answer(self, prompts: Sequence[str], tokens: int) -> Run:
        """Ask all prompts at once. Blocks; raises WrongAnswer, LoadError, ProcessFailed or
        TimeoutError."""


def checked(answers: Sequence[Answer], tokens: int) -> Run:
    """Raises WrongAnswer unless every answer has exactly that many tokens."""
    for answer in answers:
        if answer.completion_tokens != tokens:
            raise WrongAnswer(f"{answer.completion_tokens} tokens in place of {tokens}")
    return Run(answers, tokens)


@dataclass(frozen=True, slots=True)
class HTTPSubject:
    """A server with OpenAI's chat endpoint. ``fields`` are added to every request."""

    name: str
    port: int
    fields: Mapping[str, Any] = field(default_factory=dict)

    def body(self, prompt: str, tokens: int, **more: Any) -> bytes:
        return json.dumps(
            {
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": tokens,
                "temperature": 0.0,
                "stream": True,
                "stream_options": {"include_usage": True},
                **self.fields,
                **more,
            }
        ).encode()

    def answer(self, prompts: Sequence[str], tokens: int) -> Run:
        bodies = [self.body(prompt, tokens) for prompt in prompts]
        return checked(ask_together(self.port, bodies, RUN_SECONDS), tokens)


@dataclass(frozen=True, slots=True)
class BareSubject:
    process: Process
    name: str = BARE

    def answer(self, prompts: Sequence[str], tokens: int) -> Run:
        request = {"prompts": list(prompts), "max_tokens": tokens}
        answers = [
            Answer(
                text=one["text"],
                prompt_tokens=one["prompt_tokens"],
                completion_tokens=len(one["times"]),
                first=one["times"][0],
                last=one["times"][-1],
                end=one["times"][-1],
            )
            for one in self.process.ask_json(request, RUN_SECONDS)
        ]
        return checked(answers, tokens)


@dataclass(frozen=True, slots=True)
class Contest:
    """The three, ready: ours, mlx_lm.server (or another one), the bare loop, each with what it runs
    in. ``gflops``: float32 matrix products in the process of the bare loop."""

    subjects: Sequence[tuple[Subject, Host]]
    gflops: float

    @property
    def other(self) -> str:
        """The name of the server that ours is compared with."""
        return self.subjects[1][0].name

    def answer(self, index: int, prompts: Sequence[str], tokens: int) -> Run:
        """Ask one of them, and wait until it is idle again: it must not disturb the next one."""
        subject, process = self.subjects[index]
        run = subject.answer(prompts, tokens)
        process.wait_until_idle()
        return run


@contextlib.contextmanager
def contest(
    model: Path, folder: Path, openblas: str | None, against: int | None = None
) -> Iterator[Contest]:
    """Start all three and let each answer once, so that the model is loaded everywhere.
    ``against``: as :func:`rival` takes it."""
    env = environment(folder, openblas)
    with contextlib.ExitStack() as stack:
        # All are started before any is awaited: they spend seconds on imports.
        bare = stack.enter_context(
            Process("bare", ["-m", "benchmarks.bare", str(model)], env, folder, json_lines=True)
        )
        rivals, theirs = stack.enter_context(rival(folder, env, model, against))
        ours, our_port = stack.enter_context(our_server(folder, env, models=model.parents[1]))
        theirs.wait_until_healthy(rivals.port)
        ours.wait_until_healthy(our_port)
        bare.read_json(_LOAD_SECONDS)
        subjects: list[tuple[Subject, Host]] = [
            (HTTPSubject(OURS, our_port, {"ignore_eos": True, "timeout": RUN_SECONDS}), ours),
            (rivals, theirs),
            (BareSubject(bare), bare),
        ]
        for subject, process in subjects:
            subject.answer(["ready"], 2)
            process.wait_until_idle()
            process.check_openblas(openblas)
        yield Contest(subjects, bare.ask_json("gflops", _LOAD_SECONDS))


@contextlib.contextmanager
def our_server(
    folder: Path,
    env: Mapping[str, str],
    *flags: str,
    models: Path,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Iterator[tuple[Process, int]]:
    """``python -m mlx_router`` with default settings, but for ``settings``: process and port. It
    may not be ready yet. What it keeps stays in ``folder``."""
    chosen = settings or {}
    config = {
        **chosen,
        "server": {**chosen.get("server", {}), "log_dir": str(folder / "logs")},
        "defaults": {**chosen.get("defaults", {}), "state_directory": str(folder / "state")},
        "prefix_cache": {"directory": str(folder / "prompts"), **chosen.get("prefix_cache", {})},
    }
    file = folder / "config.json"
    file.write_text(json.dumps(config))
    port = free_port()
    arguments = ["-m", "mlx_router", "--config", str(file), "--ip", "127.0.0.1", "-p", str(port)]
    arguments += ["--model-dir", str(models), *flags]
    with Process(OURS, arguments, env, folder) as process:
        yield process, port


@contextlib.contextmanager
def rival(
    folder: Path, env: Mapping[str, str], model: Path, against: int | None
) -> Iterator[tuple[HTTPSubject, Host]]:
    """What ours is compared with: mlx_lm.server, or what listens at port ``against``. It may not be
    ready yet. Raises WrongAnswer if nothing there knows a model."""
    if against is not None:
        name = f"the server at port {against}"
        yield HTTPSubject(name, against, {"model": _first_model(against)}), Elsewhere()
        return
    with mlx_lm_server(folder, env, model) as (process, port):
        yield HTTPSubject(MLX_LM, port), process


def _first_model(port: int) -> str:
    connection = http.client.HTTPConnection(HOST, port, timeout=10.0)
    try:
        connection.request("GET", "/v1/models")
        return str(json.loads(connection.getresponse().read())["data"][0]["id"])
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        raise WrongAnswer(
            f"http://{HOST}:{port}/v1/models names no model ({type(error).__name__}); start the "
            "server first, with the model that benchmarks/peers.md says how to make"
        ) from None
    finally:
        connection.close()


@contextlib.contextmanager
def mlx_lm_server(
    folder: Path, env: Mapping[str, str], model: Path
) -> Iterator[tuple[Process, int]]:
    port = free_port()
    arguments = ["-m", "mlx_lm", "server", "--model", str(model), "--host", "127.0.0.1"]
    arguments += ["--port", str(port), "--log-level", "WARNING"]
    with Process(MLX_LM, arguments, env, folder) as process:
        yield process, port
