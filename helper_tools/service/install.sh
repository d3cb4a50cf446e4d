# shellcheck shell=bash
# Installs MLX Router as a service of launchd or systemd. Every version is made in a folder of its
# own while the one before still runs; if the new one does not answer, that one is put back.
#
# The script that sources this sets KIND (launchd or systemd), DEFINITION (the file that defines the
# service) and HOW_TO_GET_PYTHON, and defines
#   usage          prints the help
#   check_machine  prints what the machine is and sets MACHINE, or fails
#   is_loaded      whether the service runs, or its manager would start it again
#   stop_service   ends it, waits for that, and makes the manager forget it
#   start_service  starts it, or returns 1 after it has said why
#   has_given_up   whether the manager will not start it again by itself
#   show_errors    prints the last lines that the service wrote since it was started
#   say_how        prints how to stop, start and watch it

# shellcheck source=helper_tools/service/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

DEFINE=$SOURCE/helper_tools/service/definition.py
UNTOUCHED="What was installed before is untouched."

install_service() {
  parse_options "$@"
  resolve_install_dir
  refuse_foreign_folder
  step "this machine"
  check_machine
  check_source
  find_python
  PREVIOUS=$(readlink "$INSTALL_DIR/current" || true)
  VERSION_DIR=$INSTALL_DIR/versions/$(date +%Y%m%d-%H%M%S)-$$
  make_version
  choose_config
  if [ -n "$DRY_RUN" ]; then
    show_plan
    return
  fi
  fill_version
  step "service"
  trap put_back EXIT
  if [ -f "$DEFINITION" ] && ! cmp -s "$DEFINITION" "$INSTALL_DIR/current/definition"; then
    echo "note: $DEFINITION is of another folder, or edited. It is replaced; no folder is removed."
  fi
  is_loaded && stop_service
  place_config
  use_version "$VERSION_DIR"
  "$PYTHON" "$DEFINE" free --url "$URL" || fail "$EXIT_FAILED" "$URL is in use by another program" \
    "Stop it, or set another server.port in $INSTALL_DIR/config.json; then run $0 again."
  if ! start_service || ! wait_until_healthy; then
    printf '\nThe last lines of the error log:\n' >&2
    show_errors >&2
    fail "$EXIT_UNHEALTHY" "the service does not answer at $URL/health" \
      "The reason is most likely above. Correct it (config: $INSTALL_DIR/config.json)," \
      "then run $0 again. On a slow machine give it more time: --wait 300"
  fi
  trap - EXIT
  touch "$VERSION_DIR/works"
  remove_other_versions
  summary
}

parse_options() {
  VISION=yes
  WAIT_SECONDS=90
  while [ $# -gt 0 ]; do
    case "$1" in
      -h | --help)
        usage
        exit 0
        ;;
      --no-vision) VISION="" ;;
      --dry-run) DRY_RUN=yes ;;
      --wait)
        case "${2:-}" in
          "" | *[!0-9]* | ??????*)
            usage_error "--wait needs a number of seconds, at most 99999, not '${2:-}'"
            ;;
        esac
        WAIT_SECONDS=$((10#$2)) # 08 and 090 are no octal numbers
        shift
        ;;
      *) usage_error "unknown option '$1'" ;;
    esac
    shift
  done
}

check_source() {
  local file
  for file in pyproject.toml constraints.txt config.json README.md LICENSE \
    mlx_router/__main__.py mlx_router/config/config.schema.json; do
    [ -f "$SOURCE/$file" ] || fail "$EXIT_UNFIT" "$SOURCE/$file is missing" \
      "This script needs the whole repository around it: clone it again."
  done
}

# Sets PYTHON to one that MLX has packages for, the newest first.
find_python() {
  local name path answer refused=""
  local check='import platform, sys
fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
native = platform.machine() == sys.argv[1]
print(platform.python_version() + ("" if native else " for " + platform.machine()))
sys.exit(0 if fits and native else 1)'
  for name in python3.13 python3.12 python3.11 python3; do
    path=$(command -v "$name") || continue
    if answer=$("$path" -c "$check" "$MACHINE" 2>/dev/null); then
      PYTHON=$path
      echo "Python $answer: $PYTHON"
      return
    fi
    refused="$refused $path (${answer:-does not start})"
  done
  fail "$EXIT_UNFIT" "there is no Python 3.11, 3.12 or 3.13 for $MACHINE" \
    "Found:${refused:- none}" \
    "To get one: $HOW_TO_GET_PYTHON, or with uv: uv python install 3.12" \
    "Then run $0 again."
}

make_version() {
  local what="." python=$VERSION_DIR/venv/bin/python
  [ -z "$VISION" ] || what=".[vision]"
  if [ -z "$DRY_RUN" ]; then
    trap discard_version EXIT
    mkdir -p "$VERSION_DIR"
    echo "MLX Router is installed here as a service." >"$INSTALL_DIR/$MARKER"
  fi
  cd "$SOURCE" || exit "$EXIT_FAILED"
  if command -v uv >/dev/null; then
    step "packages, with uv"
    # A wheel in uv's cache may be of older files: it looks at pyproject.toml only.
    run uv venv --quiet --python "$PYTHON" "$VERSION_DIR/venv" &&
      run uv pip install --python "$python" --constraint constraints.txt \
        --reinstall-package mlx-router --compile-bytecode "$what"
  else
    step "packages, with pip"
    [ -z "$VISION" ] || echo "(pip also fetches 700 MB that no server uses; uv leaves them out)"
    run "$PYTHON" -m venv "$VERSION_DIR/venv" &&
      run "$python" -m pip install --disable-pip-version-check --constraint constraints.txt "$what"
  fi || fail "$EXIT_FAILED" "the packages could not be installed; the reason is above" \
    "$UNTOUCHED" "Check the network and the free space on the disk, then run $0 again."
  run "$python" -c "import mlx.core" ||
    fail "$EXIT_FAILED" "MLX does not start on this machine; the reason is above" "$UNTOUCHED"
}

discard_version() { rm -rf "$VERSION_DIR"; }

# Sets CONFIG, the file that will be in force, and URL. An edited config is kept.
choose_config() {
  CONFIG=$INSTALL_DIR/config.json
  KEEP_CONFIG=yes
  if [ ! -f "$CONFIG" ] || cmp -s "$CONFIG" "$INSTALL_DIR/current/config.json"; then
    KEEP_CONFIG=""
    CONFIG=$SOURCE/config.json
  fi
  # Without the variables of this shell, which the service will not have either.
  run env -i HOME="$HOME" PATH="$PATH" "$VERSION_DIR/venv/bin/mlx-router" config check "$CONFIG" || 
    fail "$EXIT_FAILED" "the config has a fault; it is named above" "$UNTOUCHED" \
      "Correct $CONFIG, then run $0 again."
  URL=$("$PYTHON" "$DEFINE" address --config "$CONFIG") ||
    fail "$EXIT_FAILED" "where the server will listen is not clear; the reason is above" "$UNTOUCHED"
}

define_service() {
  "$PYTHON" "$DEFINE" "$KIND" \
    --config "$CONFIG" --install-dir "$INSTALL_DIR" --version-dir "$VERSION_DIR"
}

show_plan() {
  local config="keep $INSTALL_DIR/config.json as it is"
  [ -n "$KEEP_CONFIG" ] || config="write $INSTALL_DIR/config.json"
  printf 'would %s\nwould write %s:\n\n' "$config" "$DEFINITION"
  define_service
  printf '\nwould start it, and wait for %s/health\nNothing was changed.\n' "$URL"
}

fill_version() {
  sed 's|"\./mlx_router/config/config.schema.json"|"./current/config.schema.json"|' \
    "$SOURCE/config.json" >"$VERSION_DIR/config.json"
  cp "$SOURCE/mlx_router/config/config.schema.json" "$VERSION_DIR/config.schema.json"
  cp "$SOURCE/helper_tools/service/run.sh" "$VERSION_DIR/mlx-router-service"
  chmod 755 "$VERSION_DIR/mlx-router-service"
  define_service >"$VERSION_DIR/definition"
}

place_config() {
  local config=$INSTALL_DIR/config.json
  if [ -z "$KEEP_CONFIG" ]; then
    install -m 600 "$VERSION_DIR/config.json" "$config.tmp" # it may come to hold API keys
    mv -f "$config.tmp" "$config"
    rm -f "$config.new"
  elif cmp -s "$config" "$VERSION_DIR/config.json"; then
    rm -f "$config.new"
  else
    cp "$VERSION_DIR/config.json" "$config.new"
    echo "$config was edited: it is kept, and the new defaults are in config.json.new"
  fi
}

# use_version FOLDER: the one that is started from now on.
use_version() {
  local folder
  folder=$(printf '%q' "$INSTALL_DIR")
  ln -sfn "$1" "$INSTALL_DIR/current"
  mkdir -p "$(dirname "$DEFINITION")"
  cp "$1/definition" "$DEFINITION.tmp"
  mv -f "$DEFINITION.tmp" "$DEFINITION"
  rm -f "$INSTALL_DIR/.crashes"
  # The command with this config, so that it knows the server's address and key.
  cat >"$INSTALL_DIR/mlx-router" <<END
#!/bin/bash
folder=$folder
export MLX_ROUTER_CONFIG="\${MLX_ROUTER_CONFIG:-\$folder/config.json}"
exec "\$folder/current/venv/bin/mlx-router" "\$@"
END
  chmod 755 "$INSTALL_DIR/mlx-router"
}

wait_until_healthy() {
  local end=$((SECONDS + WAIT_SECONDS))
  printf 'waiting for %s/health, at most %s s ' "$URL" "$WAIT_SECONDS"
  until "$PYTHON" "$DEFINE" health --url "$URL"; do
    if [ "$SECONDS" -ge "$end" ] || has_given_up; then
      printf ' no answer\n'
      return 1
    fi
    printf '.'
    sleep 0.5
  done
  printf ' it answers\n'
}

# At an exit before the new version has proved to work.
put_back() {
  set +e
  if [ -z "$PREVIOUS" ] || [ ! -f "$PREVIOUS/works" ]; then
    return # a first install: what is there helps to find the fault
  fi
  printf '\nputting the version before back\n' >&2
  is_loaded && stop_service
  [ -n "$KEEP_CONFIG" ] || cp "$PREVIOUS/config.json" "$INSTALL_DIR/config.json"
  use_version "$PREVIOUS"
  URL=$("$PYTHON" "$DEFINE" address --config "$INSTALL_DIR/config.json")
  WAIT_SECONDS=90
  start_service >&2 && wait_until_healthy >&2
  discard_version
}

remove_other_versions() {
  local folder
  for folder in "$INSTALL_DIR"/versions/*; do
    [ "$folder" -ef "$VERSION_DIR" ] || rm -rf "$folder"
  done
}

summary() {
  step "done: MLX Router runs at $URL"
  printf '%-9s %s\n' \
    "status:" "$URL/hub/, or $(printf '%q' "$INSTALL_DIR/mlx-router") status" \
    "API:" "$URL/v1 ($URL/docs)" \
    "config:" "$INSTALL_DIR/config.json; after a change: $(printf '%q' "$INSTALL_DIR/mlx-router") reload" \
    "log:" "$INSTALL_DIR/logs/mlx_router.log (server.log_dir)"
  say_how
}
