"""``mlx-router chat``: a model in the terminal, or one question from a script."""

from __future__ import annotations

import argparse
import logging
import math
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mlx_router.cli.parser import (
    EXIT_CODES,
    EXIT_OK,
    Parser,
    add_general,
    add_model_sources,
    overrides,
)
from mlx_router.cli.remote import Remote, ServerUnreachable, add_server
from mlx_router.errors import ConfigError

if TYPE_CHECKING:
    from mlx_router.cli.chat_answers import Answers, Message, Options

EPILOG = f"""\
examples:
  mlx-router chat                           with the server's default model
  mlx-router chat Qwen3-4B-4bit --system "Answer in one sentence."
  mlx-router chat --demo                    without a server or a download
  mlx-router chat -m "What is MLX?"         one question; prints the answer only
  git diff | mlx-router chat -m "Write a commit message for this."
  mlx-router chat Qwen3-VL-4B-Instruct-4bit --image photo.jpg -m "What is this?"
  mlx-router chat --json -m "Hello." | jq .usage

It asks the running server; --local loads models in this process instead. What
is piped in is read as the question, or follows it: in a shell's loop that reads
lines itself, add </dev/null. Ctrl+C stops an answer, Ctrl+D leaves; /help shows
what else can be typed.

{EXIT_CODES}"""

CUT = "the answer was cut off: its tokens or its time were used up (--max-tokens, defaults.timeout)"


def make_parser() -> Parser:
    parser = Parser(
        prog="mlx-router chat",
        usage="mlx-router chat [MODEL] [options]",
        description="Chats with a model, of a running server or in this process.",
        epilog=EPILOG,
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help="default: the default model")
    what = parser.add_argument_group("what is asked")
    what.add_argument("-m", "--message", metavar="TEXT", help="ask this, print the answer, and end")
    what.add_argument("--system", metavar="TEXT", help="system prompt")
    what.add_argument(
        "--image", metavar="FILE", action="append", default=[],
        help="an image or PDF for the first question, a file or URL; may be repeated",
    )  # fmt: skip
    how = parser.add_argument_group("how it answers")
    how.add_argument("--temperature", metavar="T", help="0 to 2; 0: always the likeliest")
    how.add_argument("--max-tokens", metavar="N", help="tokens of an answer")
    how.add_argument(
        "--thinking",
        action=argparse.BooleanOptionalAction,
        help="whether to think first, for models with a switch",
    )
    output = parser.add_argument_group("output, of one question")
    output.add_argument(
        "--json", action="store_true", help="print answer, reasoning and usage as JSON"
    )
    add_server(parser)
    parser.add_argument_group("without a server").add_argument(
        "--local", action="store_true", help="load models in this process"
    )
    add_model_sources(parser)
    add_general(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Raises ConfigError, ServerUnreachable, ServerRefused, and what else an answer ends with."""
    from mlx_router.cli.chat_answers import Options
    from mlx_router.cli.chat_images import part

    options = Options(
        temperature=_temperature(arguments.temperature),
        max_tokens=_tokens(arguments.max_tokens),
        thinking=arguments.thinking,
    )
    images = [part(image) for image in arguments.image]
    question = _question(arguments)
    if question is None and arguments.json:
        raise ConfigError("--json is for one question: add -m TEXT, or pipe it in")
    with _answers(arguments) as answers:
        if question is None:
            from mlx_router.cli.chat_session import Session

            model = None if arguments.model is None else answers.find(arguments.model)
            return Session(answers, model, arguments.system, options, images).run()
        from mlx_router.cli.chat_images import user_message

        messages: list[Message] = [user_message(question, images)]
        if arguments.system:
            messages.insert(0, {"role": "system", "content": arguments.system})
        return _ask_once(answers, messages, arguments, options)


def _ask_once(
    answers: Answers, messages: list[Message], arguments: argparse.Namespace, options: Options
) -> int:
    from mlx_router.cli.chat_answers import Ending
    from mlx_router.cli.terminal import print_json, without_controls

    ending = Ending()
    written: dict[str, list[str]] = {"content": [], "reasoning": [], "notice": []}
    show = without_controls if sys.stdout.isatty() else str  # a file gets what the model said
    for piece in answers.ask(messages, arguments.model, options, ending):
        written[piece.kind].append(piece.text)
        if piece.kind == "content" and not arguments.json:
            print(show(piece.text), end="", flush=True)
    content = "".join(written["content"])
    if arguments.json:
        tokens = {"prompt": ending.prompt_tokens, "completion": ending.completion_tokens}
        print_json(
            {
                "model": ending.model,
                "content": content,
                "reasoning": "".join(written["reasoning"]),
                "finish_reason": ending.finish_reason,
                "usage": {f"{name}_tokens": count for name, count in tokens.items()},
            }
        )
    elif not content.endswith("\n"):
        print()
    if ending.finish_reason == "length":
        print(f"mlx-router: {CUT}", file=sys.stderr)
    return EXIT_OK


@contextmanager
def _answers(arguments: argparse.Namespace) -> Iterator[Answers]:
    from mlx_router.cli.chat_answers import LocalAnswers, ServerAnswers

    local = arguments.local or arguments.demo or arguments.model_dir or arguments.engine != "mlx"
    if not local:
        server = Remote.of(arguments)
        answers = ServerAnswers(server)
        try:
            answers.models()
        except ServerUnreachable as error:
            raise ServerUnreachable(
                f"{error.message}\nStart one in another terminal with: mlx-router (or mlx-router "
                "--demo).\nOr chat without one: mlx-router chat --local (or --demo)."
            ) from None
        yield answers
        return
    if given := [flag for flag in ("url", "port", "api_key") if getattr(arguments, flag)]:
        flag = given[0].replace("_", "-")
        raise ConfigError(f"--{flag} asks a server; leave it out to chat in this process")
    from mlx_router.config.loading import load_settings
    from mlx_router.runtime.manager import MLXModelManager

    settings = load_settings(arguments.config, overrides(arguments))
    quiet, root = logging.NullHandler(), logging.getLogger()
    if not arguments.debug:  # log lines would stand in the middle of an answer
        root.addHandler(quiet)
    try:
        with MLXModelManager(settings, engine=arguments.engine, demo=arguments.demo) as manager:
            yield LocalAnswers(manager)
    finally:
        root.removeHandler(quiet)


def _question(arguments: argparse.Namespace) -> str | None:
    """What is asked on the command line and on stdin; None: it will be typed."""
    piped = None
    if not sys.stdin.isatty() and (arguments.message is None or _is_pipe_or_file()):
        piped = sys.stdin.read().strip()
    parts = [part for part in (arguments.message, piped) if part]
    if not parts and (arguments.message is not None or piped is not None):
        raise ConfigError("there is no question: give one with -m TEXT, or pipe it in")
    return "\n\n".join(parts) if parts else None


def _is_pipe_or_file() -> bool:
    """A terminal that is not there, /dev/null or a service's socket have nothing to say."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _temperature(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 2:
        raise ConfigError(f"--temperature: {text!r} is not allowed; use a number from 0 to 2")
    return value


def _tokens(text: Any) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or not 1 <= int(text[:10]) <= 10_000_000:
        raise ConfigError(f"--max-tokens: {text!r} is not allowed; use a whole number, 1 or more")
    return int(text)
