# shellcheck shell=bash
# Removes the service and what install.sh made. The script that sources this sets DEFINITION and
# defines usage, is_loaded, stop_service, forget_service (called after the definition is gone) and
# installed_folder (prints the folder that the definition names).

# shellcheck source=helper_tools/service/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

MADE="versions current mlx-router .crashes .crashes.new"
KEPT="config.json config.json.new logs mlx_router.log mlx_router.error.log"

uninstall_service() {
  parse_options "$@"
  resolve_install_dir
  refuse_other_folder
  refuse_foreign_folder
  if [ ! -f "$DEFINITION" ] && [ ! -d "$INSTALL_DIR" ]; then
    echo "Nothing to remove: there is no service, and no $INSTALL_DIR."
    return
  fi
  say_what
  [ -n "$DRY_RUN" ] || confirm
  if is_loaded; then
    run stop_service
  fi
  run rm -f "$DEFINITION"
  run forget_service
  remove_files
  if [ -n "$DRY_RUN" ]; then
    echo "Nothing was changed."
  else
    echo "Done. Models, ~/.local/state/mlx-router and ~/.cache/mlx-router are as they were."
  fi
}

parse_options() {
  YES=""
  PURGE=""
  while [ $# -gt 0 ]; do
    case "$1" in
      -h | --help)
        usage
        exit 0
        ;;
      -y | --yes) YES=yes ;;
      --purge) PURGE=yes ;;
      --dry-run) DRY_RUN=yes ;;
      *) usage_error "unknown option '$1'" ;;
    esac
    shift
  done
}

# The service of one folder must not go with the files of another. Its definition may be edited.
refuse_other_folder() {
  local folder
  [ -f "$DEFINITION" ] || return 0
  folder=$(installed_folder)
  [ -n "$folder" ] || fail "$EXIT_UNFIT" "$DEFINITION names no folder of MLX Router" \
    "Nothing was removed. If the file is of no use, remove it, and run $0 again:" \
    "rm $(printf '%q' "$DEFINITION")"
  # By name too: the folder may be gone.
  [ "$folder" = "$INSTALL_DIR" ] || [ "$folder" -ef "$INSTALL_DIR" ] ||
    fail "$EXIT_UNFIT" "the service was installed to $folder, not to $INSTALL_DIR" \
      "Nothing was removed. To remove that one: INSTALL_DIR=$(printf '%q' "$folder") $(printf '%q' "$0")"
}

say_what() {
  echo "This removes:"
  [ ! -f "$DEFINITION" ] || echo "  the service $DEFINITION"
  if [ ! -d "$INSTALL_DIR" ]; then
    echo "(Its folder $INSTALL_DIR is gone already.)"
  elif [ -n "$PURGE" ]; then
    echo "  $INSTALL_DIR, with config and logs"
  else
    echo "  the program in $INSTALL_DIR; config and logs stay (--purge removes them too)"
  fi
}

confirm() {
  local answer=""
  [ -z "$YES" ] || return 0
  printf 'Go on? [y/N] '
  read -r answer || true
  case "$answer" in
    y | Y | yes | Yes | YES) ;;
    *) fail "$EXIT_FAILED" "not confirmed: nothing was removed" "For scripts: --yes" ;;
  esac
}

remove_files() {
  local name
  [ -d "$INSTALL_DIR" ] || return 0
  for name in $MADE; do
    run rm -rf "${INSTALL_DIR:?}/$name"
  done
  [ -n "$PURGE" ] || return 0
  for name in $KEPT $MARKER; do
    run rm -rf "${INSTALL_DIR:?}/$name"
  done
  run rmdir "$INSTALL_DIR" 2>/dev/null ||
    echo "$INSTALL_DIR stays: there are files in it that the install did not make."
}
