"""``python main.py`` is ``mlx-router``, from a checkout."""

import sys

from mlx_router.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
