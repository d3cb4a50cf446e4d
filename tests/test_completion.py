"""Shell completion: tried in a real bash; zsh's and fish's scripts by what is in them."""

from __future__ import annotations

import importlib
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_router.cli.completion import SHELLS, script
from mlx_router.cli.main import COMMANDS, main
from mlx_router.cli.parser import Parser

Complete = Callable[..., list[str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with models, a config, and mlx-router on the path."""
    home = tmp_path_factory.mktemp("home")
    for name in ("org/qwen-small", "org/qwen-large", "gemma"):
        folder = home / "models" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    config = {"models": {"gemma": {"aliases": ["quick"]}}}
    (home / "config.json").write_text(json.dumps(config))
    (home / "hub.yaml").write_text("")
    (home / "bin").mkdir()
    program = home / "bin" / "mlx-router"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m mlx_router "$@"\n')
    program.chmod(0o755)
    return home


@pytest.fixture(scope="module")
def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLX_")}
    root = Path(__file__).parent.parent
    path = f"{home / 'bin'}:{os.environ['PATH']}"
    return {**kept, "HOME": str(home), "PATH": path, "PYTHONPATH": str(root), "PS1": "$ "}


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    return {shell: script(shell) for shell in SHELLS}


@pytest.fixture(scope="module")
def complete(home: Path, environment: dict[str, str], scripts: dict[str, str]) -> Complete:
    """What bash offers for the last of the words."""
    (home / "completion.bash").write_text(scripts["bash"])

    def offers(*words: str) -> list[str]:
        code = (
            "source completion.bash || exit 9\n"
            'COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))\n'
            "function=$(complete -p mlx-router | sed 's/.*-F \\([^ ]*\\) .*/\\1/')\n"
            '"$function" mlx-router\n'
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "--norc", "-c", code, "bash", "mlx-router", *words],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split()

    return offers


def test_commands_options_and_choices_are_completed(complete: Complete) -> None:
    assert set(complete("")) == set(COMMANDS)
    assert complete("comp") == ["completion"]
    assert complete("--mod") == ["--model-dir", "--model"]
    assert complete("models", "--js") == ["--json"]
    assert set(complete("config", "")) >= {"check", "show", "schema", "import"}
    assert complete("config", "import", "--me") == ["--merge"]
    assert complete("completion", "z") == ["zsh"]
    assert complete("serve", "--engine", "s") == ["scripted"]
    assert complete("--demo", "doc") == ["doctor"]
    assert complete("doctor", "--no") == ["--no-mlx"]


def test_models_are_completed_where_a_model_goes(complete: Complete) -> None:
    everything = ["gemma", "org/qwen-large", "org/qwen-small", "quick"]
    assert complete("--model", "") == everything
    assert complete("serve", "--model", "org/qwen-s") == ["org/qwen-small"]
    assert complete("load-model", "qu") == ["quick"]
    assert complete("--port", "") == []


def test_files_and_folders_are_completed_where_they_go(complete: Complete) -> None:
    assert complete("config", "import", "hub") == ["hub.yaml"]
    assert complete("--config", "con") == ["config.json"]
    assert complete("models", "--model-dir", "mod") == ["models"]


def test_a_tab_in_an_interactive_bash_completes(
    home: Path, environment: dict[str, str], complete: Complete
) -> None:
    terminal, its = pty.openpty()
    process = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        cwd=home,
        env=environment,
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
    )
    os.close(its)
    try:
        os.write(terminal, b"source completion.bash; echo rea''dy\n")
        read_until(terminal, "ready")
        os.write(terminal, b"mlx-router complet\t")
        read_until(terminal, "mlx-router completion ")
        os.write(terminal, b"zs\t")
        read_until(terminal, "zsh ")
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def read_until(terminal: int, text: str, seconds: float = 30) -> None:
    shown, end = "", time.monotonic() + seconds
    while text not in shown:
        ready, _, _ = select.select([terminal], [], [], max(end - time.monotonic(), 0))
        assert ready, shown
        shown += os.read(terminal, 65_536).decode(errors="replace")


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_and_option_is_in_every_script(shell: str, scripts: dict[str, str]) -> None:
    script = scripts[shell]
    for name, module in COMMANDS.items():
        assert re.search(rf"\b{name}\b", script)
        parser: Parser = importlib.import_module(module).make_parser()
        for action in parser._actions:
            for flag in action.option_strings:
                spelt = {"fish": flag.lstrip("-")}.get(shell, flag)
                assert spelt in script, (name, flag)
    assert "mlx-router completion models" in script


def test_scripts_are_what_their_shells_expect(scripts: dict[str, str]) -> None:
    checked = subprocess.run(["bash", "-n"], input=scripts["bash"], text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert scripts["zsh"].startswith("#compdef mlx-router\n")
    lines = scripts["fish"].splitlines()
    completions = [line for line in lines if line.startswith("complete ")]
    assert len(completions) > 50
    assert all(line.startswith("complete -c mlx-router ") for line in completions)
    opened = [
        line for line in lines if re.match(r"\s*(function|if|for|while|switch|begin)\b", line)
    ]
    closed = [line for line in lines if re.match(r"\s*end\b", line)]
    assert len(opened) == len(closed)


def test_zsh_looks_for_models_when_one_is_completed_and_not_before(scripts: dict[str, str]) -> None:
    function = "_mlx_router_models() {"
    before, _, after = scripts["zsh"].partition(function)
    body, _, rest = after.partition("\n}")
    assert "mlx-router completion models" in body
    assert "mlx-router completion models" not in before + rest
    assert ":_mlx_router_models" in rest


def test_the_bash_script_can_be_evaluated_as_the_help_says(
    home: Path, environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = 'eval "$(mlx-router completion bash)"'
    assert main(["completion", "--help"]) == 0
    assert line in capsys.readouterr().out
    done = subprocess.run(
        ["bash", "--norc", "-c", f"{line} && complete -p mlx-router"],
        cwd=home, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("mlx-router\n")


def test_help_imports_nothing_heavy() -> None:
    heavy = ("mlx", "pydantic", "rich", "yaml", "shtab", "packaging", "huggingface_hub", "psutil")
    code = (
        "import sys; from mlx_router.cli.main import main\n"
        "for name in ('doctor', 'pull', 'completion', 'config'):\n"
        "    assert main([name, '--help']) == 0\n"
        f"sys.exit(', '.join(name for name in {heavy} if name in sys.modules) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("examples:") == 4


@pytest.mark.parametrize("shell", SHELLS)
def test_the_command_prints_the_script(
    shell: str, scripts: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == scripts[shell] + "\n"


def test_another_shell_is_one_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    err = capsys.readouterr().err
    assert "invalid choice: 'tcsh'" in err
    assert "mlx-router completion --help" in err
