"""What is wrong with a model whose weights are not here yet."""

from __future__ import annotations

from pathlib import Path

from mlx_router.catalog import checks, supported
from mlx_router.catalog.estimate import text_config
from mlx_router.catalog.folder import ModelFolder, Problem


def problem_before_weights(path: Path, model_id: str, *, trust_remote_code: bool) -> str | None:
    """Why the model will not be usable, as :func:`inspect_folder` would say it, from a folder with
    all of its files but the weights; None: nothing is wrong so far. Raises OSError."""
    folder, libraries = ModelFolder.scan(path), supported.installed()
    try:
        config = folder.read_json("config.json") or {}
        checks.check_own_code(folder, config, trusted=trust_remote_code)
        checks.check_config(folder, config, text_config(config))
        kind = checks.kind_of(folder, config, model_id, libraries)
        checks.check_architecture(kind, config, libraries, trusted=trust_remote_code)
        checks.check_tokenizer(folder)
    except Problem as problem:
        return str(problem)
    return None
