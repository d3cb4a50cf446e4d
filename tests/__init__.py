"""Set before anything imports mlx; pytest imports this package first."""

import os
import tempfile

# Before anything imports mlx: interpreting beats running g++ for every kernel, and compiled
# kernels would be cached in a folder that other users can write to.
os.environ.setdefault("MLX_DISABLE_COMPILE", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="mlx-router-tests-")
for _name in [name for name in os.environ if name.startswith(("MLX_ROUTER_", "MLX_MODEL_DIR"))]:
    del os.environ[_name]
