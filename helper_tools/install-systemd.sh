#!/bin/bash
# Installs MLX Router as a user service of systemd. See --help.
set -euo pipefail

HOW_TO_GET_PYTHON="your distribution's package python3.12 or python3.11, with its -venv"

# shellcheck source=helper_tools/service/install.sh
. "$(dirname "${BASH_SOURCE[0]}")/service/install.sh"
# shellcheck source=helper_tools/service/systemd.sh
. "$SOURCE/helper_tools/service/systemd.sh"

usage() {
  cat <<END
usage: helper_tools/install-systemd.sh [options]

Installs MLX Router for you (no sudo), from this clone, as a user service of systemd that starts now,
at every login, and again after a crash. Run it again to update: an edited config.json is kept, and
the version before stays in use if the new one cannot be installed or does not answer.

options:
  --no-vision    without what models need that see images; text and tools only
  --wait SECONDS how long the server may take to answer (default: 90)
  --dry-run      show what would be done, and change nothing
  -h, --help     show this help

environment:
  INSTALL_DIR    the folder to install to (default: ~/mlx_router_app)
  MLX_MODEL_DIR, HF_HOME, HF_HUB_CACHE, HF_ENDPOINT
                 if set, they are set for the service too

$EXIT_CODES
  4  the service was started and does not answer; an earlier version was put back
END
}

check_machine() {
  [ "$(uname -s)" = Linux ] || fail "$EXIT_UNFIT" "this is $(uname -s), and systemd belongs to Linux" \
    "On macOS: ./install-launchd.sh"
  systemctl --user show-environment >/dev/null 2>&1 ||
    fail "$EXIT_UNFIT" "systemd has no session for you here" \
      "Log in as yourself (not with su or sudo), and see: systemctl --user status"
  MACHINE=$(uname -m)
  echo "Linux on $MACHINE, with MLX's CPU backend"
}

install_service "$@"
