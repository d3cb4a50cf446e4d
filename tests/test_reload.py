"""The config, read again: what changed takes effect, and a fault changes nothing."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_router.cli.main import main
from mlx_router.config import GroupSettings, ModelSettings, Settings
from mlx_router.config.changes import TakesEffect, changes
from mlx_router.domain import ModelState
from mlx_router.engine.scripted import ScriptedFactory
from mlx_router.errors import ConfigError
from mlx_router.runtime.manager import MLXModelManager
from tests.server import ServerProcess, free_port
from tests.waiting import until_sync


def settings(**sections: Any) -> Settings:
    return Settings.model_validate(sections)


# --- what differs ---------------------------------------------------------------------------


def test_every_changed_setting_is_named_with_both_values() -> None:
    before = settings(defaults={"cache_size": 2}, models={"o/m": {"pinned": True}})
    after = settings(
        defaults={"cache_size": 3},
        server={"port": 9000},
        models={"o/m": {"temp": 0.5, "chat_template": "qwen"}, "new": {"aliases": ["n"]}},
        groups={"g": {"max_loaded": 1}},
    )
    assert [str(change) for change in changes(before, after)] == [
        "defaults.cache_size: 2 -> 3",
        "server.port: 8800 -> 9000 (after a restart)",
        "groups.g.max_loaded: not set -> 1",
        'models["o/m"].temp: not set -> 0.5',
        'models["o/m"].chat_template: not set -> qwen (when the model is loaded again)',
        'models["o/m"].pinned: True -> False',
        "models.new.aliases: [] -> ['n']",
    ]
    assert changes(after, after) == []


def test_api_keys_are_shown_by_their_names_alone() -> None:
    before = settings(server={"api_keys": {"me": "secret-1"}})
    after = settings(server={"api_keys": {"me": "secret-2"}})
    (change,) = changes(before, after)
    assert str(change) == "server.api_keys: changed"
    assert "secret" not in repr(change)


def test_an_entry_that_is_gone_counts_as_one_that_says_nothing() -> None:
    before = Settings(models={"m": ModelSettings(max_tokens=5)}, groups={"g": GroupSettings()})
    (change,) = changes(before, Settings())
    assert (change.setting, change.before, change.after) == ("models.m.max_tokens", 5, None)
    assert change.takes_effect is TakesEffect.NOW


def test_what_needs_a_restart_stays_as_it_was_until_then() -> None:
    with MLXModelManager(engine="scripted", factory=ScriptedFactory()) as manager:
        after = settings(server={"grace_seconds": 1}, defaults={"cache_size": 3})
        for _ in range(2):  # it is told again, as long as it is so
            grace = next(c for c in manager.configure(after) if "grace" in c.setting)
            assert grace.takes_effect is TakesEffect.RESTART
        assert manager.settings.server.grace_seconds == 30.0
        assert manager.settings.defaults.cache_size == 3


# --- in a program ---------------------------------------------------------------------------


def test_a_program_changes_limits_while_models_stay_loaded() -> None:
    with MLXModelManager(engine="scripted", factory=ScriptedFactory()) as manager:
        manager.load("scripted")
        manager.load("scripted-2")
        found = manager.configure(settings(defaults={"cache_size": 1, "max_tokens": 7}))
        assert [change.setting for change in found] == [
            "defaults.max_tokens",
            "defaults.cache_size",
        ]
        states = {info.card.id: info.state for info in manager.models()}
        assert states["scripted-2"] is ModelState.READY  # the one used last
        until_sync(lambda: manager.model("scripted").state is ModelState.UNLOADED)
        answer = manager.chat("Count to a hundred, please.", model="scripted-2")
        assert answer.usage.completion_tokens == 7


def test_a_source_with_a_fault_changes_nothing() -> None:
    def broken() -> Settings:
        raise ConfigError("config.json: line 3 is broken")

    with MLXModelManager(engine="scripted", source=broken) as manager:
        before = manager.settings
        with pytest.raises(ConfigError, match="line 3"):
            manager.reload()
        assert manager.settings is before
    with (
        MLXModelManager(engine="scripted") as manager,
        pytest.raises(ConfigError, match="the program gave its settings"),
    ):
        manager.reload()


def test_what_a_manager_was_made_with_stays_over_a_reload(tmp_path: Path) -> None:
    with MLXModelManager(model_directory=tmp_path, demo=True, source=Settings) as manager:
        manager.reload()
        assert [info.card.id for info in manager.models()] == ["demo", "demo-vision"]
        assert manager.settings.defaults.model_directories() == [tmp_path]


# --- in a server ----------------------------------------------------------------------------


def rewrite(server: ServerProcess, change: Callable[[dict[str, Any]], None]) -> None:
    file = server.folder / "config.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_reload_leaves_streams_alone_and_a_broken_file_changes_nothing(
    tiny_models: Path, tmp_path: Path
) -> None:
    with ServerProcess(tmp_path, models=tiny_models) as server:
        body = {
            "model": "llama",
            "messages": [{"role": "user", "content": "Go on."}],
            "max_tokens": 200,
            "stream": True,
        }
        url = f"{server.url}/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("data: ")

            (server.folder / "config.json").write_text('{"defaults": {"cache_sise": 3}}')
            refused = httpx.post(f"{server.base}/admin/reload")
            assert refused.status_code == 400
            assert refused.json()["error"]["code"] == "config_error"
            assert "did you mean cache_size" in refused.json()["error"]["message"]

            state = {"state_directory": str(tmp_path / "state")}
            config = {
                "defaults": {"cache_size": 3, **state},
                "server": {"log_dir": str(tmp_path / "logs")},
                "prefix_cache": {"directory": str(tmp_path / "prompts")},
                "models": {"tiny/llama": {"aliases": ["small"], "max_tokens": 3}},
            }
            (server.folder / "config.json").write_text(json.dumps(config))
            done = httpx.post(f"{server.base}/admin/reload").json()
            assert done["object"] == "config.reload"
            assert [change["setting"] for change in done["changes"]] == [
                "defaults.cache_size",
                'models["tiny/llama"].max_tokens',
                'models["tiny/llama"].aliases',
            ]
            rest = [line for line in lines if line.startswith("data: ")]
        assert rest[-1] == "data: [DONE]"
        assert len(rest) > 10  # it went on as it had begun
        answer = httpx.post(
            url,
            json={**body, "model": "small", "stream": False},
            timeout=60,
        ).json()
        assert "error" not in answer, answer
        assert answer["model"] == "tiny/llama"
        assert answer["usage"]["completion_tokens"] == 3


def test_a_new_model_directory_is_served_after_a_hangup_signal(
    tiny_models: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with ServerProcess(tmp_path, "--engine", "mlx", models=tmp_path / "empty") as server:
        assert server.process is not None

        def add(config: dict[str, Any]) -> None:
            config["models"] = {"mine": {"path": str(tiny_models / "tiny" / "llama")}}

        rewrite(server, add)
        server.process.send_signal(signal.SIGHUP)
        until_sync(
            lambda: [m["id"] for m in httpx.get(f"{server.url}/models").json()["data"]] == ["mine"]
        )
        rewrite(server, lambda config: config.update(serverr={}))
        server.process.send_signal(signal.SIGHUP)
        until_sync(lambda: "did you mean server" in server.output())
        assert httpx.get(f"{server.base}/health").status_code == 200


def test_the_command_reloads_and_shows_what_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ServerProcess(tmp_path, "--engine", "scripted", models=tmp_path) as server:
        rewrite(server, lambda config: config["server"].update(max_queue=5))
        config = ["--config", str(server.folder / "config.json")]
        assert main(["reload", *config, "-p", str(server.port)]) == 0
        assert capsys.readouterr().out == "server.max_queue: 64 -> 5\n"
        assert main(["reload", *config, "--url", server.url]) == 0
        assert capsys.readouterr().out == "Nothing has changed.\n"
        rewrite(server, lambda config: config["server"].update(max_queue=6))
        assert main(["reload", *config, "--json", "-p", str(server.port)]) == 0
        (change,) = json.loads(capsys.readouterr().out)["changes"]
        assert (change["setting"], change["before"], change["after"]) == ("server.max_queue", 5, 6)
    assert main(["reload", "-p", str(free_port())]) == 4
    assert "is it running there?" in capsys.readouterr().err


def test_closing_the_terminal_ends_the_server_and_does_not_reload_it(tmp_path: Path) -> None:
    """A hang-up signal has two meanings: this is the old one."""
    code = (
        "import sys; from mlx_router.cli.main import main;"
        f"sys.exit(main(['--engine', 'scripted', '-p', '0', '--ip', '127.0.0.1',"
        f" '--config', {str(tmp_path / 'config.json')!r}]))"
    )
    (tmp_path / "config.json").write_text(
        json.dumps({"server": {"log_dir": str(tmp_path / "logs")}})
    )
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", _AS_SESSION_LEADER + code],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    ) as process:
        os.close(slave)
        try:
            output = b""
            while b"Ready" not in output:
                output += os.read(master, 4096)
            os.close(master)
            assert process.wait(20) == 0
        finally:
            process.kill()


_AS_SESSION_LEADER = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
