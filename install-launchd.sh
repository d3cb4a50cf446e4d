#!/bin/bash
# Installs MLX Router as a service of macOS that starts at login. See --help.
set -euo pipefail

HOW_TO_GET_PYTHON="brew install python@3.12, or the installer from python.org"
MACOS_AT_LEAST=14 # the oldest that MLX has packages for

# Not all of them are on the PATH of a shell that has no profile.
PATH=$PATH:/opt/homebrew/bin:/usr/local/bin:$HOME/.local/bin

# shellcheck source=helper_tools/service/install.sh
. "$(dirname "${BASH_SOURCE[0]}")/helper_tools/service/install.sh"
# shellcheck source=helper_tools/service/launchd.sh
. "$SOURCE/helper_tools/service/launchd.sh"

usage() {
  cat <<END
usage: ./install-launchd.sh [options]

Installs MLX Router for you (no sudo), from this clone, as a service that starts now, at every login,
and again after a crash. Run it again to update: an edited config.json is kept, and the version
before stays in use if the new one cannot be installed or does not answer.

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
  local system version machine memory
  system=$(uname -s)
  [ "$system" = Darwin ] || fail "$EXIT_UNFIT" "this is $system, and launchd is a part of macOS" \
    "On Linux: helper_tools/install-systemd.sh"
  machine=$(uname -m)
  if [ "$machine" != arm64 ]; then
    [ "$(sysctl -n hw.optional.arm64 2>/dev/null || true)" != 1 ] ||
      fail "$EXIT_UNFIT" "this shell runs as an Intel program, under Rosetta" \
        "Run it as a native one: arch -arm64 /bin/bash $0"
    fail "$EXIT_UNFIT" "MLX needs a Mac with Apple silicon, and this one has $machine"
  fi
  version=$(sw_vers -productVersion)
  case "${version%%.*}" in
    "" | *[!0-9]*) fail "$EXIT_UNFIT" "sw_vers says that this is macOS '$version'" ;;
  esac
  [ "${version%%.*}" -ge "$MACOS_AT_LEAST" ] ||
    fail "$EXIT_UNFIT" "this is macOS $version, and MLX needs $MACOS_AT_LEAST or later" \
      "Update in System Settings > General > Software Update."
  memory=$(sysctl -n hw.memsize 2>/dev/null || echo 0)
  echo "macOS $version on $machine, $((memory / 1024 / 1024 / 1024)) GB of memory"
  MACHINE=arm64
}

install_service "$@"
