# shellcheck shell=bash disable=SC2034
# What the scripts that install and uninstall the service share.
# Runs in bash 3.2, the one of macOS: no associative arrays, no ${x,,}, no mapfile, no wait -n.

EXIT_FAILED=1
EXIT_USAGE=2
EXIT_UNFIT=3
EXIT_UNHEALTHY=4
EXIT_CODES="exit codes:
  0  done
  1  failed, or not confirmed; an earlier install goes on
  2  wrong use
  3  this machine, its Python or the folder does not fit; nothing was changed"

SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
MARKER=.mlx-router-install
DRY_RUN=""

step() { printf '\n== %s\n' "$*"; }

# fail CODE LINE...: the first line says what is wrong, the others what to do.
fail() {
  local code=$1
  printf '\nerror: %s\n' "$2" >&2
  shift 2
  [ $# -eq 0 ] || printf '  %s\n' "$@" >&2
  exit "$code"
}

usage_error() { fail "$EXIT_USAGE" "$1" "See $0 --help."; }

# Runs a command, or prints it in a dry run.
run() {
  if [ -n "$DRY_RUN" ]; then
    printf 'would run:'
    printf ' %q' "$@"
    printf '\n'
  else
    "$@"
  fi
}

resolve_install_dir() {
  if [ -n "${SUDO_USER:-}" ]; then
    fail "$EXIT_UNFIT" "this runs without sudo" \
      "The service belongs to you, not to root: run $0 again without sudo."
  fi
  INSTALL_DIR=${INSTALL_DIR:-$HOME/mlx_router_app}
  case "$INSTALL_DIR" in
    [~]/*) INSTALL_DIR=$HOME/${INSTALL_DIR#??} ;;
    /*) ;;
    *) INSTALL_DIR=$PWD/$INSTALL_DIR ;;
  esac
  INSTALL_DIR=${INSTALL_DIR%/}
  if [ -z "$INSTALL_DIR" ] || [ "$INSTALL_DIR" -ef "$HOME" ] || [ "$INSTALL_DIR" -ef "$SOURCE" ]; then
    fail "$EXIT_UNFIT" "INSTALL_DIR must be a folder of its own, not ${INSTALL_DIR:-/}" \
      "Leave it out for ~/mlx_router_app, or name one that does not exist yet."
  fi
}

refuse_foreign_folder() {
  [ -e "$INSTALL_DIR" ] || return 0
  [ ! -f "$INSTALL_DIR/$MARKER" ] || return 0
  if [ ! -d "$INSTALL_DIR" ] || [ -n "$(ls -A "$INSTALL_DIR")" ]; then
    fail "$EXIT_UNFIT" "$INSTALL_DIR is there, and is not an install of MLX Router" \
      "Nothing in it was touched. Name another folder: INSTALL_DIR=/some/folder $0"
  fi
}
