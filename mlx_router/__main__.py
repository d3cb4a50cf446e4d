"""``python -m mlx_router`` is ``mlx-router``."""

import sys

from mlx_router.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
