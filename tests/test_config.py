"""What the config promises: precedence, messages that help, and documents that are true."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from mlx_router.config import (
    DefaultSettings,
    ModelSettings,
    PressureLimits,
    ServerSettings,
    Settings,
    load_settings,
)
from mlx_router.config import reference as documents
from mlx_router.config.describe import locate
from mlx_router.domain import Pressure, SamplingOptions
from mlx_router.errors import ConfigError

CHECKOUT = Path(__file__).resolve().parents[1]
Write = Callable[[Any], Path]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_it(content: Any) -> Path:
        path = tmp_path / "my.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write_it


def faults(path: Path | None, overrides: Any = None, environ: Any = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(path, overrides or {}, environ or {})
    return caught.value.message.splitlines()


def fault(content: Any, write: Write) -> str:
    """The one problem of a file, without the file's name."""
    path = write(content)
    (line,) = faults(path)
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


# --- where a value comes from ---------------------------------------------------------------


def test_without_a_file_the_documented_defaults_hold() -> None:
    settings = load_settings(None, {}, {})
    assert settings == Settings()
    assert (settings.server.ip, settings.server.port) == ("0.0.0.0", 8800)
    assert (settings.defaults.max_tokens, settings.defaults.timeout) == (4096, 120.0)
    assert settings.defaults.memory_threshold_gb is None
    assert settings.defaults.model_directories() == [Path.home() / "models"]


def test_config_json_of_the_working_directory_is_used(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"server": {"port": 8900}}')
    assert load_settings(None, {}, {}).server.port == 8900


def test_command_line_beats_environment_beats_file_beats_defaults(write: Write) -> None:
    path = write({"server": {"port": 1111, "ip": "1.1.1.1", "max_queue": 7}})
    environ = {"MLX_ROUTER_PORT": "2222", "MLX_ROUTER_IP": "2.2.2.2"}
    settings = load_settings(path, {"server.port": 3333, "server.ip": None}, environ)
    assert settings.server.port == 3333
    assert settings.server.ip == "2.2.2.2"
    assert settings.server.max_queue == 7
    assert settings.server.grace_seconds == 30


def test_the_environment_names_config_file_folders_and_key(write: Write) -> None:
    path = write({"defaults": {"model_directory": "/file"}, "server": {"api_keys": ["filekey"]}})
    environ = {
        "MLX_ROUTER_CONFIG": str(path),
        "MLX_MODEL_DIR": os.pathsep.join(["/one", "/two"]),
        "MLX_ROUTER_API_KEY": "envkey",
    }
    settings = load_settings(None, {}, environ)
    assert settings.defaults.model_directories() == [Path("/one"), Path("/two")]
    assert settings.server.api_keys == {"environment": "envkey"}
    by_flag = load_settings(None, {"defaults.model_directory": ["/flag"]}, environ)
    assert by_flag.defaults.model_directories() == [Path("/flag")]


def test_an_empty_variable_counts_as_not_set() -> None:
    names = ("MLX_MODEL_DIR", "MLX_ROUTER_PORT", "MLX_ROUTER_IP", "MLX_ROUTER_API_KEY")
    assert load_settings(None, {}, dict.fromkeys((*names, "MLX_ROUTER_CONFIG"), "")) == Settings()


def test_the_default_model_has_two_names_that_agree(write: Write) -> None:
    for content in ({"default_model": "a/b"}, {"defaults": {"model": "a/b"}}):
        settings = load_settings(write(content), {}, {})
        assert settings.default_model == settings.defaults.model == "a/b"
    line = fault({"default_model": "a", "defaults": {"model": "b"}}, write)
    assert line.startswith("default_model: 'a' is not allowed; defaults.model is 'b'")
    flagged = load_settings(write({"default_model": "a"}), {"defaults.model": "c"}, {})
    assert flagged.default_model == flagged.defaults.model == "c"


# --- values ---------------------------------------------------------------------------------


def test_folders_expand_and_a_text_is_a_list_of_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BIG", "/big")
    many = DefaultSettings(model_directory=["~/x", "$BIG/y", "${BIG}/y", "rel"])
    assert many.model_directories() == [Path.home() / "x", Path("/big/y"), tmp_path / "rel"]
    one = DefaultSettings.model_validate({"model_directory": "~/x"})
    assert one.model_directories() == [Path.home() / "x"]
    assert ServerSettings(log_dir="$BIG/l").log_directory() == Path("/big/l")
    assert ModelSettings(path="~/m").directory() == Path.home() / "m"


def test_keys_may_be_a_list_and_never_show_in_a_representation() -> None:
    server = ServerSettings.model_validate({"api_keys": ["s3cret", "other"]})
    assert server.api_keys == {"key-1": "s3cret", "key-2": "other"}
    assert "s3cret" not in repr(Settings(server=server))


def test_reasoning_may_be_said_with_true_and_false() -> None:
    for value, meaning in ((True, "enable"), (False, "disable"), ("enable", "enable")):
        entry = ModelSettings.model_validate({"reasoning_response": value})
        assert entry.reasoning_response == meaning


def test_wired_limit_is_a_word_or_gigabytes() -> None:
    for value in ("off", "recommended", 48, 12.5):
        assert DefaultSettings.model_validate({"wired_limit": value}).wired_limit == value


def test_a_model_entry_is_found_whatever_the_case_and_speaks_the_domain() -> None:
    settings = Settings(models={"Org/Name": ModelSettings(temp=0.0, top_k=5)})
    entry = settings.for_model("org/NAME")
    assert entry.sampling() == SamplingOptions(temperature=0.0, top_k=5)
    assert settings.for_model("org/other") == ModelSettings()
    limits = PressureLimits(normal=8, moderate=4, high=2, critical=1)
    assert [limits.limit(level) for level in Pressure] == [8, 4, 2, 1]


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Settings().server.port = 1


# --- messages -------------------------------------------------------------------------------


PORT = "a whole number from 0 to 65535"
TOKENS = "a whole number from 1 to 10000000"
SECONDS = "a number above 0, at most 86400"
LIMITS = {"normal": 1, "moderate": 1, "high": 1}


@pytest.mark.parametrize(
    ("content", "where", "said"),
    [
        ({"server": {"prot": 1}}, "server.prot", "is no setting; did you mean port?"),
        ({"server": {"PORT": 1}}, "server.PORT", "is no setting; did you mean port?"),
        ({"port": 1}, "port", "is no setting; did you mean server.port?"),
        (
            {"models": {"a": {"temperature": 1}}},
            "models.a.temperature",
            "is no setting; did you mean temp?",
        ),
        (
            {"zzzzzz": 1},
            "zzzzzz",
            "is no setting; `mlx-router config schema` lists all of them",
        ),
        ({"server": {"port": "8800"}}, "server.port", f'"8800" is not allowed; use {PORT}'),
        ({"server": {"port": 70000}}, "server.port", f"70000 is not allowed; use {PORT}"),
        ({"server": {"debug": 1}}, "server.debug", "1 is not allowed; use true or false"),
        ({"server": 3}, "server", "3 is not allowed; use an object of settings"),
        (
            {"defaults": {"timeout": 0}},
            "defaults.timeout",
            f"0 is not allowed; use {SECONDS}",
        ),
        (
            {"defaults": {"timeout": float("inf")}},
            "defaults.timeout",
            f"Infinity is not allowed; use {SECONDS}",
        ),
        (
            {"defaults": {"max_tokens": None}},
            "defaults.max_tokens",
            f"null is not allowed; use {TOKENS}",
        ),
        (
            {"defaults": {"streaming_format": "xml"}},
            "defaults.streaming_format",
            '"xml" is not allowed; use one of "sse", "json_lines", "json_array"',
        ),
        (
            {"defaults": {"wired_limit": "much"}},
            "defaults.wired_limit",
            '"much" is not allowed; '
            'use one of "off", "recommended" or a number above 0, at most 100000',
        ),
        (
            {"defaults": {"model_directory": []}},
            "defaults.model_directory",
            "[] is not allowed; use a text or a list, each item a text",
        ),
        (
            {"defaults": {"swap_critical_percent": 50}},
            "defaults.swap_high_percent",
            "75 is not allowed; use at most swap_critical_percent, which is 50",
        ),
        (
            {"models": {"o/m": 3}},
            'models["o/m"]',
            "3 is not allowed; use an object of settings",
        ),
        (
            {"models": {"m": {"temp": 3}}},
            "models.m.temp",
            "3 is not allowed; use a number from 0 to 2",
        ),
        (
            {"models": {"m": {"memory_pressure_max_tokens": LIMITS}}},
            "models.m.memory_pressure_max_tokens.critical",
            f"is missing; add {TOKENS}",
        ),
    ],
)
def test_a_message_names_the_key_the_value_and_what_is_allowed(
    content: Any, where: str, said: str, write: Write
) -> None:
    text = json.dumps(content).replace("Infinity", "1e999")
    assert fault(text, write) == f"{where}: {said}"


def test_all_problems_are_told_at_once_each_in_its_line(write: Write) -> None:
    path = write({"server": {"prot": 1, "debug": "no"}, "defaults": {"timeout": -1}, "x": 1})
    lines = faults(path, {"server.port": 99999}, {"MLX_ROUTER_IP": "ok"})
    assert len(lines) == 5
    assert (
        "command line: server.port: 99999 is not allowed; use a whole number from 0 to 65535"
        in lines
    )
    assert sum(line.startswith(f"{path}: ") for line in lines) == 4


def test_a_variable_at_fault_is_named() -> None:
    (line,) = faults(None, environ={"MLX_ROUTER_PORT": "many"})
    assert line.startswith('MLX_ROUTER_PORT: server.port: "many" is not allowed')


def test_a_key_as_config_show_masks_it_opens_nothing(write: Write) -> None:
    for keys in ({"me": "***"}, ["s3cret", "***"]):
        path = write({"server": {"api_keys": keys}})
        with pytest.raises(ConfigError, match=r"server.api_keys: \*\*\* is no key: .*config show"):
            load_settings(path)
    with pytest.raises(ConfigError, match=r"MLX_ROUTER_API_KEY: .*\*\*\* is no key"):
        load_settings(None, environ={"MLX_ROUTER_API_KEY": "***"})


def test_no_message_holds_a_key(write: Write) -> None:
    path = write({"server": {"api_keys": {"me": "s3cret with space", "you": ["s3cret"]}}})
    lines = faults(path) + faults(None, environ={"MLX_ROUTER_API_KEY": "s3cret too"})
    assert len(lines) == 3
    assert not [line for line in lines if "s3cret" in line]
    assert "server.api_keys.me: this value is not allowed; use a text without spaces" in lines[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"server": {"port": 1,}}', "is not valid JSON at line 1, column 2"),
        ('{\n  "server": \n}', "is not valid JSON at line 3, column 1: Expecting value"),
        (
            '{"a": "NaN",\n "b": NaN}',
            "is not valid JSON at line 2, column 7: NaN is not a JSON number",
        ),
        ('{"b": [-Infinity]}', "is not valid JSON at line 1, column 8: -Infinity is not"),
        ('{"server": {}, "server": {}}', '"server" is there twice in one section; keep one'),
        ("[1]", "must hold a JSON object"),
        ("[" * 100_000, "is nested too deeply"),
    ],
)
def test_broken_json_is_told_with_its_place(text: str, message: str, write: Write) -> None:
    assert fault(text, write).startswith(message)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    missing = tmp_path / "no.json"
    assert faults(missing) == [f"{missing}: there is no such file; check --config"]
    (line,) = faults(None, environ={"MLX_ROUTER_CONFIG": str(missing)})
    assert line.endswith("check MLX_ROUTER_CONFIG")
    assert faults(tmp_path) == [f"{tmp_path}: cannot be read: Is a directory; check the file"]
    latin = tmp_path / "latin.json"
    latin.write_bytes(b'{"a": "\xff"}')
    assert "is not UTF-8 text (byte 7)" in faults(latin)[0]


def test_an_alias_of_two_models_is_an_error(write: Write) -> None:
    models = {"o/a": {"aliases": ["Small"]}, "o/b": {"aliases": ["small", "O/A"]}}
    line = fault({"models": models}, write)
    assert line == (
        "models: 'small' names both o/a and o/b: give each alias to one model; "
        "'o/a' names both o/a and o/b: give each alias to one model"
    )
    load_settings(write({"models": {"o/a": {"aliases": ["x", "X", "o/a"]}}}), {}, {})


def test_a_group_that_does_not_exist_or_has_no_room_is_an_error(write: Write) -> None:
    member = {"group": "big"}
    assert fault({"groups": {"large": {}}, "models": {"o/a": member}}, write) == (
        "models: o/a is in the group 'big', which groups does not have (there: large): "
        "add it there, or leave it out here"
    )
    kept = {"o/a": {**member, "pinned": True}, "o/b": {**member, "preload": True}}
    assert fault({"groups": {"big": {"max_loaded": 1}}, "models": kept}, write) == (
        "models: o/a, o/b are pinned or preloaded, and all in the group 'big', which lets 1 be "
        "loaded: raise its max_loaded"
    )
    assert "did you mean max_loaded" in fault({"groups": {"g": {"max_loadet": 1}}}, write)
    load_settings(write({"groups": {"big": {"max_loaded": 2}}, "models": kept}), {}, {})


def test_what_is_to_stay_and_to_go_at_once_is_an_error(write: Write) -> None:
    entry = {"pinned": True, "ttl_seconds": 60}
    assert fault({"models": {"o/a": entry}}, write) == (
        'models["o/a"].ttl_seconds: is not allowed for a pinned model, which stays: '
        "keep one of the two"
    )


def test_more_preloaded_models_than_places_are_an_error(write: Write) -> None:
    models = {name: {"preload": True} for name in ("a", "b", "c")}
    assert fault({"models": models}, write) == (
        "models: a, b, c are pinned or preloaded, and cache_size lets 2 be loaded: raise "
        "defaults.cache_size"
    )
    twice = {"Org/M": {}, "org/m": {"temp": 0.5}}
    assert fault({"models": twice}, write) == (
        "models: Org/M and org/m are one model, since case does not matter: keep one entry"
    )
    load_settings(write({"defaults": {"cache_size": 3}, "models": models}), {}, {})


def test_comments_and_schema_are_allowed_everywhere(write: Write) -> None:
    content = {
        "$schema": "./config.schema.json",
        "_comment": "x",
        "server": {"_why": 1, "port": 1},
        "models": {"_example": {"nonsense": 1}, "m": {"_": None, "temp": 1}},
    }
    settings = load_settings(write(content), {}, {})
    assert settings.server.port == 1
    assert settings.models == {"m": ModelSettings(temp=1)}
    bom = write("\ufeff{}")
    assert load_settings(bom, {}, {}) == Settings()


def test_every_setting_is_described_and_every_number_is_bounded() -> None:
    for section in (Settings, DefaultSettings, ServerSettings, ModelSettings, PressureLimits):
        assert issubclass(section, BaseModel)
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"
    for place in (("defaults",), ("server",), ("models", "NAME")):
        for name in documents.setting_rows(place):
            schema = locate((*place, name))[1]
            for branch in schema.get("anyOf", [schema]):
                if branch.get("type") in ("integer", "number") and "enum" not in branch:
                    assert "maximum" in branch, name
                    assert "minimum" in branch or "exclusiveMinimum" in branch, name


def test_the_published_schema_is_that_of_the_settings() -> None:
    published = json.loads(documents.SCHEMA_FILE.read_text())
    assert published == documents.json_schema(), "run: python -m mlx_router.config.reference"
    assert "$schema" in published["properties"]
    assert published["patternProperties"] == {"^_": {}}
    assert published["$defs"]["ServerSettings"]["properties"]["port"]["default"] == 8800


def test_the_sample_config_holds_all_defaults_and_loads() -> None:
    path = CHECKOUT / "config.json"
    content = json.loads(path.read_text())
    assert content == documents.sample_config(), "run: python -m mlx_router.config.reference"
    assert load_settings(path, {}, {}) == Settings()
    assert set(content["defaults"]) == set(DefaultSettings.model_fields)
    assert set(content["server"]) == set(ServerSettings.model_fields)
    sections = set(Settings.model_fields) - {"models", "groups", "default_model"}
    assert sections < set(content)
    assert Settings.model_validate({"models": content["models"]["_example"]}).models


def test_the_tables_of_the_documentation_are_those_of_the_settings() -> None:
    document = (CHECKOUT / "docs" / "configuration.md").read_text()
    assert documents.with_tables(document) == document, "run: python -m mlx_router.config.reference"
    assert "| `port` | `8800` | a whole number from 0 to 65535 |" in document
    with pytest.raises(ValueError, match="put the two lines back"):
        documents.with_tables("no markers")


def test_the_examples_of_the_documentation_load(write: Write) -> None:
    document = (CHECKOUT / "docs" / "configuration.md").read_text()
    examples = [block.split("```")[0] for block in document.split("```json")[1:]]
    assert len(examples) >= 3
    for example in examples:
        load_settings(write(example), {}, {})
