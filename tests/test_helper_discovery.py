"""helper_tools/mlx_model_parameter_discovery_tool.py, on tiny models and on the demo model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mlx_router
from mlx_router.config import load_settings
from mlx_router.errors import ConfigError
from tests.embedding_models import make_embedding_model
from tests.helper_support import Tool, helper_module
from tests.models import add_remote_code, copy_model, drop_shard, make_model

DEMO = Path(mlx_router.__file__).parent / "demo" / "model"
MODEL = "tiny/qwen3"
NAME = "discovered_configs_tiny_qwen3.json"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_model("qwen3", folder / MODEL)
    make_model("llama", folder / "tiny/llama")
    return folder


@pytest.fixture
def tool(
    models: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Tool:
    """The tool, in an empty folder, with the models in MLX_MODEL_DIR."""
    monkeypatch.setenv("MLX_MODEL_DIR", str(models))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return Tool("mlx_model_parameter_discovery_tool", capfd)


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def written(file: Path, content: Any) -> Path:
    file.write_text(json.dumps(content, indent=4) + "\n")
    return file


# --- what is found --------------------------------------------------------------------------


def test_a_model_s_files_tell_its_settings(tool: Tool, tmp_path: Path, models: Path) -> None:
    said = tool("qwen3", "--json")
    assert said.code == 0
    found = said.json
    assert found["model"] == MODEL
    assert (found["kind"], found["architecture"], found["family"]) == ("text", "qwen3", "Qwen 3")
    assert found["template"] == "qwen"
    assert found["context_length"] == 2048
    assert found["supports_tools"]
    assert found["supports_reasoning"]
    assert not found["supports_vision"]
    assert found["required_source"] == "estimated"
    entry = found["entry"]
    assert "path" not in entry
    assert "chat_template" not in entry
    assert entry["max_tokens"] == 2048
    assert entry["memory_pressure_max_tokens"] == {
        "normal": 2048,
        "moderate": 1024,
        "high": 512,
        "critical": 256,
    }
    assert entry["required_memory_gb"] * 2**30 >= found["required_bytes"]
    advised = json.loads((models / MODEL / "generation_config.json").read_text())
    assert entry["temp"] == advised["temperature"]
    assert found["sampling_source"] == "generation_config.json"
    kept = json.loads((tmp_path / NAME).read_text())
    assert kept == {key: value for key, value in found.items() if key != "measured"}


def test_a_model_that_sees_is_one_that_sees(tool: Tool) -> None:
    found = tool(DEMO.parent / "vision", "--json").json
    assert found["kind"] == "vision"
    assert found["supports_vision"]
    assert found["entry"]["supports_vision"]


def test_an_embedding_model_needs_memory_and_nothing_else(tool: Tool, tmp_path: Path) -> None:
    folder = make_embedding_model("bert", tmp_path / "bert")
    found = tool(folder, "--json").json
    assert found["kind"] == "embedding"
    assert found["entry"].keys() == {"path", "required_memory_gb"}
    assert "writes no text" in tool.fails(2, folder, "--benchmark")


def test_without_advice_in_its_files_the_family_s_is_taken(
    tool: Tool, models: Path, tmp_path: Path
) -> None:
    folder = copy_model(models / MODEL, tmp_path / "plain")
    (folder / "generation_config.json").unlink()
    found = tool(folder, "--json").json
    assert found["sampling_source"] == "the makers of Qwen 3"
    assert found["sampling"]["temp"] == 0.6  # as for one that reasons
    assert found["entry"]["path"] == str(folder)


def test_advice_that_makes_no_sense_is_left_out(tool: Tool, models: Path, tmp_path: Path) -> None:
    folder = copy_model(models / MODEL, tmp_path / "odd")
    advice = {"temperature": 99, "top_p": "high", "top_k": True, "min_p": 0.1}
    (folder / "generation_config.json").write_text(json.dumps(advice))
    assert tool(folder, "--json").json["sampling"] == {"min_p": 0.1}


def test_a_model_without_a_template_gets_its_family_s(
    tool: Tool, models: Path, tmp_path: Path
) -> None:
    folder = copy_model(models / "tiny/llama", tmp_path / "bare")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    found = tool(folder, "--json").json
    assert found["template"] is None
    assert found["entry"]["chat_template"] == "llama3"


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ '<|start_header_id|>' }}", "llama3"),
        ("<|im_start|><tool_call>", "qwen"),
        ("<|im_start|>", "chatml"),
        ("<start_of_turn>", "gemma"),
        ("<|channel|>final<|message|>", "gpt-oss"),
        ("[INST]", "mistral"),
        ("hello", "other"),
    ],
)
def test_templates_are_told_apart(template: str, name: str) -> None:
    assert helper_module("_families").template_format(template) == name


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("qwen3_moe", "Qwen 3"),
        ("qwen2_vl", "Qwen 2"),
        ("gemma3_text", "Gemma"),
        ("gpt_oss", "gpt-oss"),
        ("deepseek_v3", "DeepSeek"),
        ("bert", "unknown"),
    ],
)
def test_architectures_have_families(model_type: str, name: str) -> None:
    assert helper_module("_families").family_of(model_type).name == name


def test_all_that_families_advise_is_allowed_in_a_config() -> None:
    from mlx_router.config.settings import ModelSettings

    families = helper_module("_families")
    for family in families.FAMILIES:
        for sampling in (family.sampling, family.thinking):
            ModelSettings.model_validate({"chat_template": family.template, **sampling})


def test_a_model_with_code_of_its_own_needs_a_decision_and_nothing_is_run(
    tool: Tool, models: Path, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    folder = copy_model(models / MODEL, tmp_path / "own")
    add_remote_code(folder, canary)
    said = tool.fails(1, folder, "--benchmark")
    assert "needs a decision" in said
    assert "trust_remote_code" in said
    assert not canary.exists()
    assert not list(tmp_path.glob("*.json"))


def test_a_model_that_cannot_be_used_says_why(tool: Tool, tmp_path: Path) -> None:
    folder = make_model("sharded", tmp_path / "sharded")
    drop_shard(folder)
    assert "is missing" in tool.fails(1, folder)


# --- a benchmark ----------------------------------------------------------------------------


def test_a_benchmark_measures_load_memory_prefill_and_decoding(tool: Tool, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    said = tool(DEMO, "--benchmark", "--quick", "--write", config)
    assert said.code == 0, said
    found = json.loads((tmp_path / "discovered_configs_model.json").read_text())
    assert found["required_source"] == "measured"
    (file,) = tmp_path.glob("benchmark_results_model_*.json")
    told = json.loads(file.read_text())
    assert told["load_seconds"] > 0
    assert told["weights_bytes"] > 1_000_000
    assert told["peak_bytes"] >= told["weights_bytes"]
    assert told["required_bytes"] == found["required_bytes"]
    assert told["machine"]["memory_bytes"] > 0
    (prompt,) = told["benchmark"]["prompts"]
    assert prompt["cold"]["prefill_tokens_per_second"] > 0
    assert told["benchmark"]["decode_tokens_per_second"] > 0
    assert "tokens/s" in said.out
    assert load_settings(config, environ={}).models["model"].directory() == DEMO


# --- the config file ------------------------------------------------------------------------


def test_the_entry_is_merged_and_everything_else_stays(tool: Tool, tmp_path: Path) -> None:
    content = {
        "_comment": "mine: Grüße",
        "defaults": {"timeout": 60.0, "_why": "short"},
        "models": {"_note": 1, "other/model": {"temp": 0.1}, "Tiny/Qwen3": {"max_tokens": 77}},
        "server": {"port": 9000},
    }
    config = written(tmp_path / "config.json", content)
    before = config.read_text()
    config.chmod(0o600)
    said = tool("qwen3", "--write", config)
    assert said.code == 0
    assert "+" in said.out
    assert "kept: max_tokens is 77 there (found: 2048)" in said.out
    after = json.loads(config.read_text())
    entry = after["models"].pop("Tiny/Qwen3")
    assert entry["max_tokens"] == 77
    assert entry["supports_tools"] is True
    content["models"].pop("Tiny/Qwen3")  # type: ignore[attr-defined]
    assert after == content
    assert config.read_text().startswith('{\n    "_comment"')
    assert config.stat().st_mode & 0o777 == 0o600
    (backup,) = tmp_path.glob("config.json.*.bak")
    assert backup.read_text() == before
    assert load_settings(config, environ={}).for_model(MODEL).max_tokens == 77


def test_replace_takes_what_was_found(tool: Tool, tmp_path: Path) -> None:
    entry = {"max_tokens": 77, "aliases": ["q"]}
    config = written(tmp_path / "config.json", {"models": {MODEL: entry}})
    assert tool("qwen3", "--write", config, "--replace").code == 0
    now = json.loads(config.read_text())["models"][MODEL]
    assert now["max_tokens"] == 2048
    assert now["aliases"] == ["q"]


def test_writing_twice_changes_nothing(tool: Tool, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    assert tool("qwen3", "--write", config).code == 0
    before = config.read_text(), files(tmp_path)
    said = tool("qwen3", "--write", config)
    assert "needs no change" in said.out
    assert (config.read_text(), files(tmp_path)) == before


def test_a_dry_run_shows_the_change_and_writes_nothing(tool: Tool, tmp_path: Path) -> None:
    config = written(tmp_path / "config.json", {})
    said = tool("qwen3", "--write", config, "--benchmark", "--dry-run")
    assert '"tiny/qwen3": {' in said.out.partition("config.json (new)")[2]
    assert "nothing loaded" in said.out
    assert files(tmp_path) == ["config.json"]
    assert json.loads(config.read_text()) == {}


def test_a_config_with_a_fault_is_left_as_it_is(tool: Tool, tmp_path: Path) -> None:
    config = written(tmp_path / "config.json", {"defaults": {"max_tokns": 3}})
    before = config.read_text()
    said = tool.fails(2, "qwen3", "--write", config)
    assert "did you mean" in said
    assert config.read_text() == before
    assert files(tmp_path) == ["config.json"]
    config.write_text("{broken")
    assert "line 1" in tool.fails(2, "qwen3", "--write", config)


def test_what_the_router_would_refuse_is_not_written(tmp_path: Path) -> None:
    merge = helper_module("_merging").merge
    config = written(tmp_path / "config.json", {"models": {MODEL: {"pinned": True}}})
    before = config.read_text()
    with pytest.raises(ConfigError, match="Nothing was written") as caught:
        merge(config, MODEL, {"ttl_seconds": 5.0}, replace=False)
    assert str(config) in caught.value.message
    assert config.read_text() == before
    assert files(tmp_path) == ["config.json"]


def test_a_config_that_changed_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    module = helper_module("_merging")
    config = written(tmp_path / "config.json", {})
    change = module.merge(config, MODEL, {"max_tokens": 5}, replace=False)
    config.write_text('{"server": {"port": 1}}')
    with pytest.raises(ConfigError, match="changed meanwhile"):
        module.write(change)
    assert config.read_text() == '{"server": {"port": 1}}'


def test_a_config_that_is_a_link_stays_one(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real = written(tmp_path / "real" / "config.json", {})
    link = tmp_path / "config.json"
    link.symlink_to(real)
    assert tool("qwen3", "--write", link).code == 0
    assert link.is_symlink()
    assert MODEL in json.loads(real.read_text())["models"]


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        ((), 2, "MODEL"),
        (("qwn3",), 1, "The nearest are: tiny/qwen3"),
        (("./nowhere",), 2, "is no model's folder"),
        (("qwen3", "--quick"), 2, "--benchmark"),
        (("qwen3", "--replace"), 2, "--write"),
        (("qwen3", "--output", "nowhere"), 2, "no folder to write into"),
        (("qwen3", "--write", "no/config.json"), 2, "make it first"),
        (("qwen3", "--write", "."), 2, "is a folder"),
    ],
)
def test_wrong_use_is_one_clear_line(
    tool: Tool, words: tuple[str, ...], code: int, hint: str
) -> None:
    said = tool.fails(code, *words)
    assert hint in said
    assert len(said.splitlines()) == 1
