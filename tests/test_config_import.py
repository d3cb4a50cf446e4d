"""Config files of neighbouring tools become a config, and nothing of them is lost in silence."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import mlx_router
from mlx_router.cli.main import main
from mlx_router.config import Settings
from mlx_router.config.importing import Outcome, import_file, known
from tests.server import ServerProcess

DEMO = Path(mlx_router.__file__).parent / "demo" / "model"
Run = Callable[..., tuple[int, str, str]]

MODELS_YAML = """\
# what runs on the studio
base_path: ~/mlx-server-orch
starting_port: 5005
models:
  - name: qwen3_30b
    model_path: mlx-community/Qwen3-30B-A3B-4bit-DWQ
    default: true
    enable_auto_tool_choice: true
    trust_remote_code: true
    tool_call_parser: qwen3_moe
    reasoning_parser: qwen3_moe

  - name: qwen3_4b
    model_path: mlx-community/Qwen3-4B-Instruct-2507-8bit
    default: true
    max_concurrency: 1
    queue_timeout: 300
    queue_size: 100
    port: 5010
    host: 127.0.0.1
    log_file: logs/small.log
    enable_auto_tool_choice: true

  - name: local
    model_path: models/mine
    no_log_file: true
    log_level: DEBUG
    context_length: 32768
"""

HUB_YAML = """\
host: 127.0.0.1
port: 8123
model_starting_port: 47850
log_level: DEBUG
log_path: ~/hub/logs
enable_status_page: true

models:
  - name: always
    model_path: mlx-community/Qwen3-4B-4bit
  - name: coder
    model_path: mlx-community/Qwen3-Coder-30B-A3B-Instruct-4bit
    jit_enabled: true
    group: big
    auto_unload_minutes: 20
    tool_call_parser: qwen3_coder
  - name: thinker
    model_path: mlx-community/gpt-oss-20b-MXFP4-Q8
    jit_enabled: true
    group: big
    port: 48000
  - name: drawer
    model_path: black-forest-labs/FLUX.1-schnell
    model_type: image-generation
    config_name: flux-schnell
groups:
  - name: big
    max_loaded: 1
    idle_unload_trigger_min: 5
"""

SERVER_YAML = """\
server:
  host: "0.0.0.0"
  port: 8050
  log_level: INFO
  log_file: logs/app.log

models:
  - model_path: mlx-community/Qwen3.5-9B-MLX-4bit
    model_type: lm
    served_model_name: Qwen3.5-9B
    default_temperature: 0.6
    default_max_tokens: 2048
    kv_bits: 8
  - model_path: mlx-community/Qwen3-Embedding-0.6B-4bit-DWQ
    model_type: embeddings
    served_model_name: embedder
    on_demand: true
    on_demand_idle_timeout: 60
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MLX_MODEL_DIR", "MLX_ROUTER_CONFIG", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_it(*words: str) -> tuple[int, str, str]:
        code = main(["config", "import", *words])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run_it


def write(text: str, name: str = "hub.yaml") -> Path:
    Path(name).write_text(text)
    return Path(name)


def notes(text: str, outcome: Outcome) -> dict[tuple[int, str], str]:
    found = import_file(write(text)).notes
    return {(note.line, note.key): note.text for note in found if note.outcome == outcome}


# --- what becomes of the files --------------------------------------------------------------------


def test_an_orchestrators_models_become_entries_that_its_names_reach(tmp_path: Path) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    imported = import_file(write(MODELS_YAML, "models.yaml"))
    assert imported.kind == "an orchestrator's models.yaml with 3 models"
    assert imported.config == {
        "server": {"log_dir": str(tmp_path / "mlx-server-orch" / "logs")},
        "defaults": {
            "hf_cache": True,
            "model": "mlx-community/Qwen3-30B-A3B-4bit-DWQ",
            "cache_size": 3,
        },
        "models": {
            "mlx-community/Qwen3-30B-A3B-4bit-DWQ": {"aliases": ["qwen3_30b"], "preload": True},
            "mlx-community/Qwen3-4B-Instruct-2507-8bit": {
                "aliases": ["qwen3_4b"],
                "preload": True,
            },
            "local": {"path": str(tmp_path / "models" / "mine"), "context_length": 32768},
        },
    }
    assert imported.hub_models == (
        "mlx-community/Qwen3-30B-A3B-4bit-DWQ",
        "mlx-community/Qwen3-4B-Instruct-2507-8bit",
    )
    assert not [note for note in imported.notes if note.outcome == Outcome.WRONG]


def test_a_hub_becomes_one_server_with_groups_and_idle_times() -> None:
    imported = import_file(write(HUB_YAML))
    assert imported.kind == "a hub.yaml with 4 models"
    assert imported.config == {
        "server": {"ip": "127.0.0.1", "port": 8123, "debug": True, "log_dir": "~/hub/logs"},
        "groups": {"big": {"max_loaded": 1, "idle_unload_minutes": 5}},
        "defaults": {"hf_cache": True},
        "models": {
            "mlx-community/Qwen3-4B-4bit": {"aliases": ["always"], "preload": True},
            "mlx-community/Qwen3-Coder-30B-A3B-Instruct-4bit": {
                "aliases": ["coder"],
                "ttl_seconds": 1200,
                "group": "big",
            },
            "mlx-community/gpt-oss-20b-MXFP4-Q8": {"aliases": ["thinker"], "group": "big"},
        },
    }
    settings = Settings.model_validate(imported.config)
    assert settings.group_of(settings.for_model("mlx-community/gpt-oss-20b-MXFP4-Q8")).max_loaded


def test_a_servers_own_config_of_several_models_is_understood_too(tmp_path: Path) -> None:
    imported = import_file(write(SERVER_YAML, "config.yaml"))
    assert imported.kind == "a config.yaml of mlx-openai-server with 2 models"
    assert imported.config["server"] == {
        "ip": "0.0.0.0",
        "port": 8050,
        "log_dir": str(tmp_path / "logs"),
    }
    assert imported.config["models"] == {
        "mlx-community/Qwen3.5-9B-MLX-4bit": {
            "aliases": ["Qwen3.5-9B"],
            "temp": 0.6,
            "max_tokens": 2048,
            "kv_bits": 8,
            "preload": True,
        },
        "mlx-community/Qwen3-Embedding-0.6B-4bit-DWQ": {
            "aliases": ["embedder"],
            "ttl_seconds": 60,
        },
    }


def test_what_has_no_counterpart_is_told_with_its_line_and_what_is_instead() -> None:
    left = notes(MODELS_YAML, Outcome.LEFT)
    assert left[3, "starting_port"].startswith("one port serves all models")
    assert "defaults.max_batch_size" in left[16, "max_concurrency"]
    assert "defaults.timeout" in left[17, "queue_timeout"]
    assert "server.max_queue" in left[18, "queue_size"]
    assert "one port" in left[19, "port"]
    assert "server.log_dir" in left[21, "log_file"]
    assert "set trust_remote_code" in left[9, "trust_remote_code"]
    assert "images" in notes(HUB_YAML, Outcome.LEFT)[24, "model drawer"]


def test_every_known_key_becomes_something_or_says_why_not() -> None:
    values = {"text": "x", "whole": 1, "number": 1, "flag": True, "any": [1]}
    handled = {"name", "served_model_name", "model_id", "model_path", "model_type", "group"}
    for key in known.MODEL.keys() - handled:
        model = {"name": "m", "model_path": "a/b", key: values[known.MODEL[key].kind]}
        found = import_file(write(json.dumps({"starting_port": 1, "models": [model]})))
        entry = found.config["models"]["a/b"].keys() - {"aliases"}
        told = [note for note in found.notes if note.key == key]
        assert entry or told or key in ("jit_enabled", "on_demand"), key
    settings = Settings.model_json_schema()["$defs"]
    for keys, section in ((known.MODEL, "ModelSettings"), (known.GROUP, "GroupSettings")):
        assert {k.to for k in keys.values() if k.to} <= settings[section]["properties"].keys()


def test_the_document_names_every_key_that_is_taken_over() -> None:
    text = (Path(__file__).parent.parent / "docs" / "importing.md").read_text()
    for keys in (known.TOP, known.GROUP, known.MODEL):
        for name, key in keys.items():
            if key.to:
                assert f"`{name}`" in text, name
                assert key.to.split(".")[-1] in text, key.to


@pytest.mark.parametrize(
    ("changed", "line", "key", "said"),
    [
        (("tool_call_parser", "tool_cal_parser"), 16, "tool_cal_parser", "mean tool_call_parser?"),
        (("port: 48000", "port: many"), 21, "port", "many is not a whole number"),
        (("jit_enabled: true", "jit_enabled: 1"), 13, "jit_enabled", "1 is not true or false"),
        (("group: big", "group: huge"), 14, "model coder", "no group huge in groups (there: big)"),
        (
            ("  - name: thinker", "  - name: coder"),
            17,
            "model coder",
            "names another model already",
        ),
        (("  - name: big", "  - nam: big"), 27, "groups", "a group has no name"),
        (("    model_path: mlx-community/Qwen3-4B-4bit\n", ""), 9, "model always", "no model_path"),
        (("log_level: DEBUG", "log_levle: DEBUG"), 4, "log_levle", "did you mean log_level?"),
        (("mlx-community/gpt-oss-20b-MXFP4-Q8", "/no/such"), 18, "model thinker", "/no/such"),
    ],
)
def test_what_is_wrong_is_named_with_its_line_and_the_rest_is_taken_over(
    changed: tuple[str, str], line: int, key: str, said: str
) -> None:
    wrong = notes(HUB_YAML.replace(*changed, 1), Outcome.WRONG)
    assert said in wrong[line, key]
    assert import_file(Path("hub.yaml")).config["models"]


def test_paths_count_from_the_file_and_keep_their_home(tmp_path: Path) -> None:
    (tmp_path / "there" / "models" / "b").mkdir(parents=True)
    file = tmp_path / "there" / "models.yaml"
    file.write_text(
        "models:\n"
        "  - {name: a, model_path: ~/models/a}\n"
        "  - {name: b, model_path: models/b}\n"
        "  - {name: c, model_path: ../c}\n"
        "  - {name: d, model_path: $HOME/d}\n"
        "  - {name: e, model_path: /absolute/e}\n"
        "  - {model_path: ./f}\n"
    )
    found = import_file(file).config["models"]
    assert {name: entry["path"] for name, entry in found.items()} == {
        "a": "~/models/a",
        "b": str(tmp_path / "there" / "models" / "b"),
        "c": str(tmp_path / "c"),
        "d": "$HOME/d",
        "e": "/absolute/e",
        "f": str(tmp_path / "there" / "f"),
    }


def test_anchors_and_notes_of_the_author_are_understood() -> None:
    text = (
        "x-common: &common\n  jit_enabled: true\n  auto_unload_minutes: 1\n"
        "port: 8000\n"
        "models:\n  - <<: *common\n    name: a\n    model_path: a/a\n    auto_unload_minutes: 2\n"
        "  - <<: *common\n    name: 4\n    model_path: b/b\n"
    )
    imported = import_file(write(text))
    assert imported.config["models"]["a/a"]["ttl_seconds"] == 120
    assert imported.config["models"]["b/b"] == {"aliases": ["4"], "ttl_seconds": 60}
    assert not [note for note in imported.notes if note.outcome == Outcome.WRONG]


def test_models_loaded_at_start_have_room_and_do_not_crowd_a_group() -> None:
    entries = "".join(f"  - {{name: m{n}, model_path: o/m{n}, group: g}}\n" for n in range(4))
    groups = "groups:\n  - {name: g, max_loaded: 3}\n"
    imported = import_file(write(f"models:\n{entries}{groups}"))
    loaded = [name for name, entry in imported.config["models"].items() if entry.get("preload")]
    assert loaded == ["o/m0", "o/m1", "o/m2"]
    assert imported.config["defaults"]["cache_size"] == 4


# --- files that cannot be imported ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models:\n  - name: a\n   model_path: b\n", "is not valid YAML at line 3, column 4"),
        ("models:\n\t- name: a\n", "is not valid YAML at line 2, column 1"),
        ("models: [\n", "is not valid YAML at line 2"),
        ("a: 1\na: 2\n", "is not valid YAML at line 2, column 1: 'a' is there twice: keep one"),
        ("models: !!python/object:os.system {}\n", "is not valid YAML at line 1"),
        ("a: \x01\n", "is not valid YAML"),
        ("a: 1\nb: 2024-13-01\n", "is not valid YAML at line 2, column 4: a value that cannot"),
        ("a: !!bool maybe\n", "is not valid YAML at line 1, column 4: a value that cannot"),
        ("models: &all [*all]\n", "is not valid YAML at line 1, column 9"),
        ("- a\n- b\n", "must hold keys and values, with a list `models`"),
        ("", "must hold keys and values"),
        ("port: 8000\n", "has no list `models`"),
        ("models: []\n", "has no list `models`"),
        ('{"models": {"a": {"ttl_seconds": 5}}}', "is a config of MLX Router already"),
        ("port: 70000\nmodels: [{model_path: a/b}]\n", "hub.yaml, line 1: server.port: 70000"),
        ("models:\n- model_path: a/b\n  kv_bits: 8\n  context_length: 0\n", "line 4: models["),
        ("[" * 500, "nested too deeply"),
    ],
)
def test_a_file_that_is_none_of_them_is_one_clear_error(run: Run, text: str, said: str) -> None:
    write(text)
    code, out, err = run("hub.yaml")
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
    assert not Path("config.json").exists()


def test_a_file_that_is_not_there_or_no_text_is_one_clear_error(run: Run) -> None:
    assert run("no.yaml")[2].startswith("mlx-router: no.yaml: cannot be read: No such file")
    Path("binary.yaml").write_bytes(b"models: \xff\xfe")
    assert "is not UTF-8 text (byte 8)" in run("binary.yaml")[2]
    assert "import needs a file" in run()[2]


# --- the command ----------------------------------------------------------------------------------


def test_the_report_says_what_became_of_everything(run: Run) -> None:
    write(MODELS_YAML, "models.yaml")
    code, out, err = run("models.yaml")
    assert (code, err) == (0, "")
    assert out.startswith("models.yaml: an orchestrator's models.yaml with 3 models\n")
    taken, left = out.index("Taken over:"), out.index("No counterpart:")
    assert taken < left < out.index("\nNot on this machine yet")
    assert "lines 8, 22, enable_auto_tool_choice: found out from the model's own files" in out
    assert "  mlx-router pull mlx-community/Qwen3-30B-A3B-4bit-DWQ\n" in out
    assert out.endswith("Written: config.json\n")
    assert main(["config", "check"]) == 0


def test_nothing_is_overwritten_unless_it_is_asked_for(run: Run) -> None:
    write(HUB_YAML)
    there = {
        "_why": "mine",
        "server": {"port": 9000},
        "models": {"MLX-Community/qwen3-4b-4bit": {}},
    }
    Path("config.json").write_text(json.dumps(there))
    Path("config.json").chmod(0o600)
    code, out, err = run("hub.yaml")
    assert (code, out) == (2, "")
    assert "config.json: is there already, and nothing was written; add to it with --merge" in err
    assert json.loads(Path("config.json").read_text()) == there

    code, out, _ = run("hub.yaml", "--merge")
    assert code == 0
    assert "server.port stays 9000" in out
    merged: dict[str, Any] = json.loads(Path("config.json").read_text())
    assert merged["_why"] == "mine"
    assert merged["server"]["port"] == 9000
    assert merged["server"]["ip"] == "127.0.0.1"
    assert merged["models"]["MLX-Community/qwen3-4b-4bit"]["aliases"] == ["always"]
    assert "mlx-community/Qwen3-4B-4bit" not in merged["models"]
    assert stat.S_IMODE(Path("config.json").stat().st_mode) == 0o600

    assert run("hub.yaml", "--force")[0] == 0
    assert json.loads(Path("config.json").read_text())["server"]["port"] == 8123
    assert run("hub.yaml", "--merge", "--force")[0] == 2


def test_a_config_that_is_named_with_a_home_is_not_overwritten_either(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(HUB_YAML)
    there = tmp_path / "mine.json"
    there.write_text("{}")
    code, _, err = run("hub.yaml", "--output", "~/mine.json")
    assert code == 2
    assert "is there already, and nothing was written" in err
    monkeypatch.setenv("MLX_ROUTER_CONFIG", "~/mine.json")
    assert run("hub.yaml")[0] == 2
    assert there.read_text() == "{}"
    assert run("hub.yaml", "--force")[0] == 0
    assert there.read_text() != "{}"


def test_what_is_beside_the_config_stays_as_it_is_and_a_new_one_is_its_owners(run: Run) -> None:
    write(HUB_YAML)
    Path("config.json.new").write_text("of the installer")
    assert run("hub.yaml")[0] == 0
    assert Path("config.json.new").read_text() == "of the installer"
    assert stat.S_IMODE(Path("config.json").stat().st_mode) == 0o600
    assert sorted(path.name for path in Path().iterdir()) == [
        *("config.json", "config.json.new", "hub.yaml")
    ]


def test_a_server_that_is_no_section_is_named_as_wrong() -> None:
    wrong = notes("server: [a, b]\nmodels:\n  - model_path: org/name\n", Outcome.WRONG)
    assert wrong == {(1, "server"): "a, b is no section with keys; it was left out"}


def test_a_merge_that_does_not_fit_writes_nothing(run: Run) -> None:
    write(HUB_YAML)
    there = json.dumps({"models": {"mine": {"aliases": ["coder"]}}})
    Path("config.json").write_text(there)
    code, out, err = run("hub.yaml", "--merge")
    assert (code, out) == (2, "")
    assert "'coder' names both mine and mlx-community/Qwen3-Coder-30B-A3B-Instruct-4bit" in err
    assert Path("config.json").read_text() == there


def test_a_dry_run_writes_nothing_and_prints_a_config(run: Run) -> None:
    write(HUB_YAML)
    code, out, err = run("hub.yaml", "--dry-run")
    assert code == 0
    assert Settings.model_validate(json.loads(out)).server.port == 8123
    assert "No counterpart:" in err
    assert not Path("config.json").exists()


def test_options_of_import_are_for_import_only(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "check", "--merge"]) == 2
    assert "--merge is for import, not for check" in capsys.readouterr().err
    write(HUB_YAML)
    assert "is the file to import" in run("hub.yaml", "--output", "./hub.yaml")[2]
    assert run("hub.yaml", "--output", "no/such/folder.json")[2].startswith(
        "mlx-router: no/such/folder.json: cannot be written: No such file"
    )


def test_a_server_with_an_imported_config_lists_its_models(run: Run, tmp_path: Path) -> None:
    write(
        "host: 127.0.0.1\nmodels:\n"
        f"  - {{name: first, model_path: {DEMO}, jit_enabled: true, group: small}}\n"
        f"  - {{name: second, model_path: {DEMO}, jit_enabled: true, group: small}}\n"
        "groups:\n  - {name: small, max_loaded: 1, idle_unload_trigger_min: 5}\n"
    )
    assert run("hub.yaml", "--output", "made.json")[0] == 0
    config = json.loads(Path("made.json").read_text())
    with ServerProcess(tmp_path, config=config, models=tmp_path / "none") as server:
        listed = httpx.get(f"{server.url}/models", timeout=20).json()["data"]
        assert [(model["id"], model["state"]) for model in listed] == [
            ("first", "unloaded"),
            ("second", "unloaded"),
        ]
