"""A chat in the terminal: what is typed, what is answered, and the commands in between."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from glob import escape, glob

from rich.console import Console
from rich.status import Status

from mlx_router.cli.chat import CUT
from mlx_router.cli.chat_answers import Answers, Ending, Message, Options
from mlx_router.cli.chat_images import part, user_message
from mlx_router.cli.parser import EXIT_OK, unknown
from mlx_router.cli.terminal import duration, printable, without_controls
from mlx_router.errors import ConfigError, RouterError

HELP = '''\
/model [NAME]    answer with another model; without a name: which there are
/image FILE …    show an image or a PDF with the next message
/system [TEXT]   the system prompt; without a text: none
/clear           forget the conversation
/help            this
/exit            leave (or Ctrl+D)

Ctrl+C stops an answer. A message of several lines stands between two """.'''

_PROMPT = "> "
_QUOTES = '"""'
_COMMAND = re.compile(r"/[a-z]+(?=\s|$)")


class Session:
    """One conversation. ``images`` go with the first message; ``model`` None: the default one."""

    def __init__(
        self,
        answers: Answers,
        model: str | None,
        system: str | None,
        options: Options,
        images: Sequence[Message] = (),
    ) -> None:
        self._answers = answers
        self._model = model
        self._system = system
        self._options = options
        self._images = list(images)
        self._turns: list[Message] = []
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: self._console.print(HELP),
            "/clear": self._clear,
            "/model": self._choose,
            "/image": self._attach,
            "/system": self._instruct,
        }

    def run(self) -> int:
        """Until the user leaves."""
        _edit_lines([*self._commands, "/exit"], self._answers)
        self._note(f"Chatting with {self._model or 'the default model'}. /help shows the commands.")
        while True:
            try:
                text = self._read()
                if text in ("/exit", "/quit", "/bye"):
                    return EXIT_OK
                self._take(text)
            except EOFError:
                self._console.print()
                return EXIT_OK
            except KeyboardInterrupt:
                self._console.print()
                self._note("Ctrl+D or /exit leaves.")
            except RouterError as error:
                for line in error.message.splitlines():
                    self._console.print(printable(line), style="red")

    def _read(self) -> str:
        text = input(_PROMPT).strip()
        if not text.startswith(_QUOTES):
            return text
        text = text.removeprefix(_QUOTES)
        while not text.rstrip().endswith(_QUOTES):
            text += "\n" + input(". ")
        return text.rstrip().removesuffix(_QUOTES).strip()

    def _take(self, text: str) -> None:
        found = _COMMAND.match(text)
        if found is None:
            if text:
                self._ask(text)
            return
        name = found.group()
        if name not in self._commands:
            raise ConfigError(f"{unknown('command', name, self._commands)} (/help shows them all)")
        self._commands[name](text[len(name) :].strip())

    # --- questions --------------------------------------------------------------------------

    def _ask(self, text: str) -> None:
        question = user_message(text, self._images)
        system = [{"role": "system", "content": self._system}] if self._system else []
        ending, said, stopped = Ending(), list[str](), False
        shown = _Shown(self._console, self._model or "the model")
        try:
            with closing(
                self._answers.ask(
                    [*system, *self._turns, question], self._model, self._options, ending
                )
            ) as pieces:
                for piece in pieces:
                    if piece.kind == "content":
                        said.append(piece.text)
                    shown.add(piece.kind, piece.text)
        except KeyboardInterrupt:
            stopped = True
        except RouterError:
            if self._images:  # they may be what was wrong
                self._images.clear()
                shown.end()
                self._note("Not answered; nothing is attached any more.")
            raise
        finally:
            shown.end()
        if said or not stopped:  # what was stopped before it began was never asked
            answer = {"role": "assistant", "content": "".join(said)}
            self._turns += [question, answer]
            self._images.clear()
        self._note("stopped" if stopped else shown.pace(ending))
        if ending.finish_reason == "length" and not stopped:
            self._note(CUT)

    def _note(self, text: str) -> None:
        self._console.print(printable(text), style="dim")

    # --- commands ---------------------------------------------------------------------------

    def _clear(self, _: str) -> None:
        self._turns.clear()
        self._images.clear()
        self._note("The conversation is forgotten.")

    def _choose(self, name: str) -> None:
        if name:
            self._model = self._answers.find(name)
            self._note(f"{self._model} answers from now on.")
            return
        for model in self._answers.models():
            mark = "*" if model == self._model else " "
            self._console.print(f"{mark} {printable(model)}")

    def _attach(self, names: str) -> None:
        if not names:
            raise ConfigError("/image needs a file: /image photo.jpg")
        whole = os.path.isfile(os.path.expanduser(names))  # a name with spaces, as it is
        try:
            files = [names] if whole else shlex.split(names)
        except ValueError:  # it's me.jpg
            raise ConfigError(
                f"/image {names}: there is no such file; between names, put a blank, and quotes "
                "around each with blanks or quotes of its own"
            ) from None
        self._images += [part(name) for name in files]
        count = len(self._images)
        self._note(f"{count} image{'s' * (count != 1)} for the next message.")

    def _instruct(self, text: str) -> None:
        self._system = text or None
        self._note("The system prompt is set." if text else "There is no system prompt now.")


class _Shown:
    """An answer as it is written: a sign of life until it begins, and reasoning apart."""

    def __init__(self, console: Console, model: str) -> None:
        self._console = console
        self._status: Status | None = console.status(printable(f"waiting for {model}"))
        self._status.start()
        self._kind = ""
        self._line_ended = True
        self._asked = time.monotonic()
        self._first = self._last = self._asked

    def add(self, kind: str, text: str) -> None:
        if kind == "notice":
            if self._status is not None:
                self._status.update(printable(text))
            return
        self._stop_waiting()
        self._last = time.monotonic()
        if not self._kind:
            self._first = self._last
        if self._kind == "reasoning" and kind == "content":
            self._console.out("\n" if self._line_ended else "\n\n", end="")
            text = text.lstrip("\n")
        self._kind = kind
        text = without_controls(text)
        style = "dim" if kind == "reasoning" else None
        self._console.out(text, style=style, end="", highlight=False)
        self._console.file.flush()
        self._line_ended = text.endswith("\n") if text else self._line_ended

    def end(self) -> None:
        self._stop_waiting()
        if not self._line_ended:
            self._console.print()

    def pace(self, ending: Ending) -> str:
        """How fast it came: to the first text, and from there on."""
        words = [ending.model, f"{ending.completion_tokens} tokens"]
        if self._last > self._first:
            words.append(f"{ending.completion_tokens / (self._last - self._first):.0f} tokens/s")
        return ", ".join([*words, f"the first after {duration(self._first - self._asked)}"])

    def _stop_waiting(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def _edit_lines(commands: Sequence[str], answers: Answers) -> None:
    """Arrow keys, earlier lines, and Tab for commands, models and files. Nothing is kept."""
    try:
        import readline
    except ImportError:  # a Python without it reads plain lines
        return

    def complete(text: str, state: int) -> str | None:
        line, found = readline.get_line_buffer(), list[str]()
        if line.startswith("/model "):
            with suppress(RouterError):
                found = [name for name in answers.models() if name.startswith(text)]
        elif line.startswith("/image "):
            found = glob(f"{escape(os.path.expanduser(text))}*")
        elif line.startswith("/"):
            found = [f"{name} " for name in commands if name.startswith(text)]
        return found[state] if state < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    libedit = "libedit" in (readline.__doc__ or "")  # macOS's own
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
