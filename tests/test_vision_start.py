"""What vision costs those who have none of it: nothing, or one clear sentence."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_router.domain import ChatPrompt, Message, ModelCard, ModelKind, TextPart
from mlx_router.engine.vision.codec import VisionCodec
from mlx_router.engine.vision.model import VisionModel
from tests.media_support import data_uri, encoded, gradient
from tests.models import make_model, write_json
from tests.server import ServerProcess
from tests.vision_models import change_processor, make_vision_model
from tests.vision_support import BOX, Sight, user

Json = dict[str, Any]
Modules = frozenset[str]

VISION_PACKAGES = ("mlx_vlm", "PIL", "pdf2image", "pypdfium2")
TORCH = ("torch", "torchvision")
INSTALL = "`uv sync --extra vision`"

# Hides packages from a process, and writes down what it has imported when it ends.
SITECUSTOMIZE = """
import atexit, importlib.machinery, json, os, sys
hidden = os.environ["HIDDEN_PACKAGES"].split(",")
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, *rest: (
    None if name.partition(".")[0] in hidden else find(name, *rest)
)
def write():
    with open(f"{os.path.dirname(__file__)}/{os.getpid()}.json", "w") as file:
        json.dump(list(sys.modules), file)
atexit.register(write)
"""

Hide = Callable[..., None]


@pytest.fixture
def imports(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder to which processes that are started now write what they imported."""
    folder = tmp_path_factory.mktemp("imports")
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("HIDDEN_PACKAGES", "")
    return folder


@pytest.fixture
def hide(imports: Path, monkeypatch: pytest.MonkeyPatch) -> Hide:
    """Hides packages from the processes that are started from now on."""
    return lambda *packages: monkeypatch.setenv("HIDDEN_PACKAGES", ",".join(packages))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model, a vision model that mlx-lm knows without its eyes, and one that it does not."""
    folder = tmp_path_factory.mktemp("models")
    make_model("llama", folder / "llama")
    make_vision_model("gemma3", folder / "gemma3")
    make_vision_model("idefics3", folder / "idefics3")
    return folder


IMAGE = {"type": "image_url", "image_url": {"url": data_uri(encoded(gradient(40, 40)))}}


def ask(server: ServerProcess, model: str, *content: Json | str) -> httpx.Response:
    parts = [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": 4,
        "temperature": 0,
        "return_token_ids": True,
    }
    return httpx.post(f"{server.url}/chat/completions", json=body, timeout=60)


def refusal(answer: httpx.Response) -> Json:
    assert answer.status_code == 400, answer.text
    error: Json = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error


# --- a server for text ----------------------------------------------------------------------


def imported_by_a_text_server(folder: Path, models: Path, imports: Path) -> Modules:
    """All that a server imports that lists vision models but answers with a text model only."""
    with ServerProcess(folder, models=models) as server:
        assert ask(server, "llama", "Hello").status_code == 200
        assert httpx.get(f"{server.url}/models").status_code == 200
        assert server.process is not None
        file = imports / f"{server.process.pid}.json"
    return frozenset(json.loads(file.read_text()))


@pytest.mark.slow
def test_serving_text_costs_the_same_with_and_without_vision(
    tmp_path_factory: pytest.TempPathFactory, models: Path, imports: Path, hide: Hide
) -> None:
    with_vision = imported_by_a_text_server(tmp_path_factory.mktemp("with"), models, imports)
    hide(*VISION_PACKAGES)
    without = imported_by_a_text_server(tmp_path_factory.mktemp("without"), models, imports)
    more = {name for name in with_vision - without if not name.startswith("PIL")}
    assert not more  # transformers takes Pillow along where there is one; nothing here asks for it
    packages = {name.partition(".")[0] for name in with_vision}
    assert "mlx_lm" in packages
    unwanted = {"mlx_vlm", "pdf2image", "pypdfium2", "httpcore", "cv2", "datasets", *TORCH}
    assert not packages & unwanted
    ours = {name for name in with_vision if name.startswith("mlx_router.")}
    assert not {name for name in ours if "vision" in name}
    assert not ours & {"mlx_router.media.image", "mlx_router.media.fetch"}


# --- packages that are missing --------------------------------------------------------------


def described(server: ServerProcess, model: str) -> tuple[str, bool, str | None]:
    """The kind of a model, whether it sees, and why it cannot be used."""
    found = httpx.get(f"{server.url}/models/{model}").json()
    return found["kind"], found["capabilities"]["vision"], found.get("problem")


def test_models_that_see_are_listed_as_such(tiny_vision_server: ServerProcess) -> None:
    listed = httpx.get(f"{tiny_vision_server.url}/models").json()["data"]
    sees = {model["id"]: (model["kind"], model["capabilities"]["vision"]) for model in listed}
    assert sees == {
        "llama": ("text", False),
        "gemma3": ("vision", True),
        "idefics3": ("vision", True),
    }
    assert described(tiny_vision_server, "gemma3") == ("vision", True, None)


@pytest.fixture(scope="module")
def tiny_vision_server(
    models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("server"), models=models) as server:
        yield server


def test_without_mlx_vlm_models_say_what_to_install(
    tmp_path: Path, models: Path, hide: Hide
) -> None:
    hide("mlx_vlm")
    with ServerProcess(tmp_path, models=models) as server:
        listed = httpx.get(f"{server.url}/models").json()["data"]
        assert {model["id"] for model in listed} == {"llama", "gemma3"}
        kind, sees, problem = described(server, "idefics3")
        assert (kind, sees) == ("vision", True)
        assert problem is not None
        for content in (["Hello"], ["Hello", IMAGE]):
            error = refusal(ask(server, "idefics3", *content))
            assert error["code"] == "model_corrupt"
            assert "need mlx-vlm" in error["message"]
            assert INSTALL in error["message"]
        # mlx-lm knows the language half of the other
        assert "Text only without mlx-vlm: gemma3." in server.output()
        assert described(server, "gemma3") == ("text", False, None)
        assert ask(server, "gemma3", "Hello").status_code == 200
        error = refusal(ask(server, "gemma3", "Hello", IMAGE))
        assert "mlx-vlm is not installed" in error["message"]
        assert INSTALL in error["message"]


def test_without_pillow_models_say_what_to_install(
    tmp_path: Path, models: Path, hide: Hide
) -> None:
    hide("PIL")
    with ServerProcess(tmp_path, models=models) as server:
        assert described(server, "gemma3") == ("vision", True, None)
        error = refusal(ask(server, "gemma3", "Hello", IMAGE))
        assert error["code"] == "vision_not_installed"
        assert error["param"] == "messages.0.content.1"
        assert "Pillow is not installed" in error["message"]
        assert INSTALL in error["message"]
        failed = ask(server, "gemma3", "Hello").json()["error"]
        assert failed["code"] == "model_load_failed"
        assert "Pillow" in failed["message"]
        assert INSTALL in failed["message"]
        assert ask(server, "llama", "Hello").status_code == 200


# --- processors that cannot be loaded -------------------------------------------------------


@pytest.mark.slow
def test_a_processor_that_cannot_be_loaded_is_said_to_who_sends_an_image(
    tmp_path: Path, models: Path, hide: Hide
) -> None:
    """Text is served by all of them, and they answer as they do with a processor."""
    hide(*TORCH)
    folder = tmp_path / "models"
    for name in ("torch", "missing", "unknown", "odd", "broken", "whole"):
        shutil.copytree(models / "gemma3", folder / name)
    change_processor(folder / "torch", image_processor_type="Llama4ImageProcessor")
    (folder / "missing" / "preprocessor_config.json").unlink()
    change_processor(folder / "unknown", image_processor_type="NoSuchImageProcessor")
    change_processor(folder / "odd", size=[56], image_mean="half")
    (folder / "broken" / "preprocessor_config.json").write_text('{"size": ')
    with ServerProcess(tmp_path, models=folder) as server:
        expected = ask(server, "whole", "Hello").json()["choices"][0]["token_ids"]
        assert ask(server, "whole", "Hello", IMAGE).status_code == 200
        said = {
            "torch": "needs PyTorch.* uv pip install torch torchvision",
            "missing": "preprocessor_config.json is missing. Download the model again",
            "unknown": "could not be loaded .ValueError.. Download the model again",
            "odd": "could not be loaded",
        }
        for name, words in said.items():
            answer = ask(server, name, "Hello")
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["token_ids"] == expected
            error = refusal(ask(server, name, "Hello", IMAGE))
            assert error["code"] == "vision_unavailable"
            assert re.search(words, error["message"])
        error = refusal(ask(server, "broken", "Hello"))
        assert error["code"] == "model_corrupt"
        assert "preprocessor_config.json" in error["message"]


# --- a model's own code ---------------------------------------------------------------------

AUTO_CLASSES = {
    "config.json": ("AutoConfig", "AutoModel", "AutoProcessor"),
    "tokenizer_config.json": ("AutoTokenizer", "AutoProcessor"),
    "preprocessor_config.json": ("AutoImageProcessor", "AutoProcessor"),
    "processor_config.json": ("AutoProcessor", "AutoImageProcessor"),
}


def put_canary(folder: Path, *files: str) -> Path:
    """Code in a model's folder that is asked for in ``files``; the file that exists if it ran."""
    sign = folder.parent / f"{folder.name}.ran"
    (folder / "canary.py").write_text(f"open({str(sign)!r}, 'w').close()\nclass Canary: pass\n")
    for name in files:
        settings = json.loads((folder / name).read_text())
        asked: Json = dict.fromkeys(AUTO_CLASSES[name], "canary.Canary")
        if "AutoTokenizer" in asked:
            asked["AutoTokenizer"] = ["canary.Canary", "canary.Canary"]
        write_json(folder / name, settings | {"auto_map": asked})
    return sign


@pytest.mark.slow
def test_a_server_never_runs_code_of_a_model_that_is_not_trusted(
    tmp_path: Path, models: Path
) -> None:
    folder = tmp_path / "models"
    signs = []
    for file in AUTO_CLASSES:
        shutil.copytree(models / "gemma3", folder / Path(file).stem)
        signs.append(put_canary(folder / Path(file).stem, file))
    with ServerProcess(tmp_path, models=folder) as server:
        for file in AUTO_CLASSES:
            for content in (["Hello"], ["Hello", IMAGE]):
                error = refusal(ask(server, Path(file).stem, *content))
                assert f"(auto_map in {file})" in error["message"]
                assert "trust_remote_code" in error["message"]
    assert not any(sign.exists() for sign in signs)


# Loads codec and model of folders, untrusted and trusted; says whether they were whole.
MAKE_CODECS = """
import json, sys
from pathlib import Path
from mlx_router.domain import ModelCard, ModelKind
from mlx_router.engine.vision.codec import VisionCodec
from mlx_router.engine.vision.model import load_vision_model
found = {}
for folder in map(Path, sys.argv[2:]):
    card = ModelCard("org/" + folder.name, folder, ModelKind.VISION, folder.name)
    trusted = sys.argv[1] == "trusted"
    try:
        codec = VisionCodec(card, trust_remote_code=trusted)
        load_vision_model(card, trust_remote_code=trusted)
        found[folder.name] = codec._problem
    except Exception as error:
        found[folder.name] = repr(error)
print(json.dumps(found))
"""


def load_in_a_process(folders: list[Path], trust: str) -> dict[str, str | None]:
    """Codecs and models; what is wrong with each, or None."""
    done = subprocess.run(
        [sys.executable, "-c", MAKE_CODECS, trust, *map(str, folders)],
        timeout=100,
        capture_output=True,
        env={**os.environ, "HF_HOME": str(folders[0].parent / "hf")},
    )
    found: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_the_loaders_of_mlx_vlm_run_no_code_either(tmp_path: Path) -> None:
    """Past the catalog, which refuses such a model: its files may change after it looked."""
    kinds = ("qwen2_vl", "gemma3", "idefics3")
    folders = [make_vision_model(kind, tmp_path / kind) for kind in kinds]
    signs = [put_canary(folder, *AUTO_CLASSES) for folder in folders]
    assert load_in_a_process(folders, "not trusted") == dict.fromkeys(kinds)
    assert not any(sign.exists() for sign in signs)
    load_in_a_process(folders, "trusted")
    assert all(sign.exists() for sign in signs)  # so the canary sings where it may


# --- text for a model that sees -------------------------------------------------------------


def test_text_for_a_vision_model_takes_the_text_path(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = ModelCard("gemma3", models / "gemma3", ModelKind.VISION, "gemma3")
    codec = VisionCodec(card)
    monkeypatch.setattr(codec, "_processor", None)  # whoever calls it fails
    for content in ("Hello there", (TextPart("Hello "), TextPart("there"))):
        encoded_chat = codec.encode_chat(ChatPrompt((Message("user", content),)))
        assert encoded_chat.ids
        assert encoded_chat.media is None


def test_text_and_images_decode_in_one_batch(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    compute = VisionModel.__call__

    def seen(self: VisionModel, ids: Any, cache: list[Any]) -> Any:
        shapes.append(ids.shape)
        return compute(self, ids, cache)

    monkeypatch.setattr(VisionModel, "__call__", seen)
    sight = Sight(models / "gemma3")
    try:
        text, image = sight.job(user("Hello")), sight.job(user(BOX, "Hello"))
        assert text.media is None
        assert image.media is not None
        sight.run(text, image)
    finally:
        sight.close()
    assert (2, 1) in shapes
