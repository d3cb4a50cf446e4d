"""The documents are true: links lead somewhere, blocks parse, and whatever is named exists."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.routing import Match

from mlx_router.api.app import create_app
from mlx_router.cli.main import COMMANDS, _command_position
from mlx_router.cli.parser import Parser
from mlx_router.config import Settings
from mlx_router.errors import RouterError
from tests.api_support import FakeManager
from tests.documents import DOCUMENTS, ROOT, anchors, blocks, links, name_of, prose, spans

# Named to say that they are not there.
NOT_SERVED = {"/v1/responses", "/v1/messages"}
WRONG_ON_PURPOSE = {("server", "prot")}
# Options of other programs that the documents name by themselves.
OF_OTHERS = {"--local-dir", "--extra", "--add-host", "--system-certs"}
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)


@each_document
def test_links_lead_somewhere(document: Path) -> None:
    for link in links(document):
        if not link.startswith(("http://", "https://")):
            target, _, anchor = link.partition("#")
            file = document.parent / target if target else document
            assert file.exists(), link
            assert not anchor or anchor in anchors(file), link


@each_document
def test_blocks_can_be_read_by_what_they_are_for(document: Path) -> None:
    for block in blocks(document):
        try:
            match block.kind:
                case "json":
                    json.loads(block.text)
                case "yaml":
                    yaml.safe_load(block.text)
                case "toml":
                    tomllib.loads(block.text)
                case "python":
                    ast.parse(block.text)
        except (ValueError, SyntaxError, yaml.YAMLError) as error:
            pytest.fail(f"{block.where}: {error}")
    scripts = "\n".join(block.text for block in blocks(document, "sh"))
    done = subprocess.run(["bash", "-n"], input=scripts, text=True, capture_output=True)
    assert not done.stderr


@each_document
def test_configs_are_valid(document: Path) -> None:
    for block in blocks(document, "json"):
        content = json.loads(block.text)
        if is_config(content):
            Settings.model_validate(content)


def is_config(content: Any) -> bool:
    """Whether a JSON block is a config of ours: other programs have sections called models, too."""
    sections = {"defaults", "server", "media", "prefix_cache", "groups"}
    return isinstance(content, dict) and (
        bool(sections & content.keys()) or isinstance(content.get("models"), dict)
    )


def test_there_are_configs() -> None:
    found = [json.loads(b.text) for document in DOCUMENTS for b in blocks(document, "json")]
    assert sum(map(is_config, found)) >= 10


@each_document
def test_settings_that_are_named_exist(document: Path) -> None:
    fields = Settings.model_fields
    for span in spans(document):
        named = r"(?<![\w.-])(defaults|server|media|prefix_cache)\.(\w+)"
        for section, name in set(re.findall(named, span)) - WRONG_ON_PURPOSE:
            assert name in getattr(fields[section].annotation, "model_fields", {}), span


@pytest.mark.parametrize(
    "name",
    ["MEMORY_PRESSURE", *(f"docs/{n}" for n in ("configuration", "operations", "troubleshooting"))],
)
def test_keys_that_are_shown_are_settings_or_fields_of_the_api(name: str) -> None:
    known = json.dumps([Settings.model_json_schema(), app().openapi()])
    for span in spans(ROOT / f"{name}.md"):
        for key in re.findall(r'"(\w+)": ', span):
            assert f'"{key}": {{' in known, span


@each_document
def test_commands_and_options_that_are_named_exist(document: Path) -> None:
    for command in mentioned_commands(document):
        words = shlex.split(command, comments=True)[1:]
        position = _command_position(words, parsers()["serve"].flags_with_value())
        name = "serve" if position is None else words[position]
        assert name in parsers(), command
        options = parsers()[name]._option_string_actions
        for word in words:
            if re.match(r"--?[a-z]", word):
                assert word.partition("=")[0] in options, command


@cache
def parsers() -> dict[str, Parser]:
    return {name: importlib.import_module(path).make_parser() for name, path in COMMANDS.items()}


def mentioned_commands(document: Path) -> Iterator[str]:
    """``mlx-router …`` of code spans and shell blocks, up to the end of the command."""
    lines = spans(document)
    lines += [line for block in blocks(document, "sh") for line in block.text.splitlines()]
    for line in lines:
        begin = r"(?:^\s*|uv run |[(|;&] ?)"
        for found in re.findall(begin + r"(mlx-router(?: +[^|;&)<>]*)?)(?=$|[|;&)<>])", line):
            # In prose, FILE and … stand for something; the name alone is not a command.
            command = found.replace("'", "").strip()
            if "…" not in command and "COMMAND" not in command:
                yield command


def test_there_are_commands() -> None:
    assert sum(1 for document in DOCUMENTS for _ in mentioned_commands(document)) > 50


@each_document
def test_options_that_are_named_alone_exist(document: Path) -> None:
    if document.name == "peers.md":
        return  # it tells of other servers
    for span in spans(document):
        if option := re.match(r"--[a-z][a-z-]*", span):
            assert option[0] in known_options() | OF_OTHERS, span
    for block in blocks(document, "sh"):
        for command in re.findall(r"(?:helper_tools/|install-).*", block.text):
            for option in re.findall(r" (--[a-z][a-z-]*)", command.partition("#")[0]):
                assert option in known_options(), command


@cache
def known_options() -> set[str]:
    """Options of the commands, and of the scripts and helper tools of the repository."""
    found = {option for parser in parsers().values() for option in parser._option_string_actions}
    files = [*ROOT.glob("*.sh"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("mlx_router/demo/*.py")]
    files += [path for path in ROOT.glob("helper_tools/**/*.*") if path.suffix in (".sh", ".py")]
    for file in files:
        found |= set(re.findall(r"--[a-z][a-z-]*", file.read_text()))
    return found


@each_document
def test_routes_that_are_named_exist(document: Path) -> None:
    for method, path in mentioned_routes(document):
        assert serves(method, path) is (path not in NOT_SERVED), f"{method} {path}"


def mentioned_routes(document: Path) -> Iterator[tuple[str, str]]:
    """Method ("" where none is named) and path, of code spans and of URLs of the server."""
    ours = r"/(?:v1|admin|hub|health|metrics|docs|redoc|openapi\.json)(?![\w.-])[\w./{}-]*"
    for span in spans(document):
        if found := re.fullmatch(rf"(?:(GET|POST) )?({ours})(?:\?\S*)?", span):
            yield found[1] or "", found[2]
    text = document.read_text()
    for path in re.findall(rf"https?://[\w.]+:88\d\d({ours})", text):
        yield "", path


def serves(method: str, path: str) -> bool:
    """Whether the app has this route; /v1 is the address that clients are given."""
    if path.rstrip("/") == "/v1" or path.startswith("/hub/assets"):
        return True
    for one in [method] if method else ["GET", "POST"]:
        scope = {"type": "http", "method": one, "path": path, "root_path": "", "headers": []}
        if any(route.matches(scope)[0] is Match.FULL for route in app().routes):
            return True
    return path == "/admin"  # all of them


@cache
def app() -> Any:
    return create_app(FakeManager(), Settings())


def test_there_are_routes() -> None:
    named = {path for document in DOCUMENTS for _, path in mentioned_routes(document)}
    assert len(named) > 15
    assert named >= NOT_SERVED


@each_document
def test_variables_and_files_that_are_named_exist(document: Path) -> None:
    text = document.read_text()
    for variable in set(re.findall(r"\bMLX_(?:ROUTER|MODEL)_[A-Z_]+\b", text)):
        assert variable in sources() or variable in example_variables(text), variable
    folders = "docs|helper_tools|mlx_router|tests|benchmarks"
    for file in re.findall(rf"(?<![\w/.-])((?:{folders})/[\w./-]+\.[a-z]+)\b", prose(document)):
        found = (ROOT / file).exists() or (document.parent / file).exists()
        assert found or Path(file).stem.isupper(), file


@cache
def sources() -> str:
    files = [*ROOT.glob("mlx_router/**/*.py"), *ROOT.glob("*.sh")]
    files += ROOT.glob("helper_tools/**/*.*")
    return "".join(file.read_text() for file in files if file.suffix in (".py", ".sh"))


def example_variables(text: str) -> set[str]:
    """Variables of the reader's own, which hold a key for another program."""
    return set(re.findall(r"\bMLX_ROUTER_KEY\b", text))


def test_every_command_is_in_the_readme_the_manual_and_the_help() -> None:
    readme = (ROOT / "README.md").read_text()
    manual = (ROOT / "docs/commands.md").read_text()
    told = parsers()["serve"].format_help()
    for name in COMMANDS:
        assert re.search(rf"`(?:mlx-router )?{name}\b", readme), name
        assert re.search(rf"^## .*\b{name}\b", manual, re.MULTILINE), name
        assert re.search(rf"\b{name}\b", told), name


def test_every_document_can_be_reached_from_the_readme() -> None:
    reached, new = set[Path](), {ROOT / "README.md"}
    while new:
        reached |= new
        targets = {
            (document.parent / link.partition("#")[0]).resolve()
            for document in new
            for link in links(document)
            if "://" not in link
        }
        new = {target for target in targets if target.suffix == ".md"} - reached
    assert reached >= set(DOCUMENTS)


def test_every_error_code_is_in_the_api_s_description() -> None:
    importlib.import_module("mlx_router.api.errors")
    text = (ROOT / "docs/api.md").read_text()
    kinds: list[type[RouterError]] = [RouterError]
    for kind in kinds:
        kinds += [k for k in kind.__subclasses__() if k.__module__.startswith("mlx_router.")]
    public = ("mlx_router.errors", "mlx_router.api.errors")
    codes = {kind.code for kind in kinds if kind.__module__ in public}
    assert len(codes) > 15
    assert not {code for code in codes if f"`{code}`" not in text}


@each_document
def test_nobody_is_sent_to_the_stranger_on_pypi(document: Path) -> None:
    wrong = r"(?:pip install|uvx|uv tool install|pipx install) +mlx[-_]router\b"
    assert not re.search(wrong, document.read_text())
