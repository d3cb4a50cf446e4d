# shellcheck shell=bash disable=SC2034
# The service to systemd: a unit of this user. Used by the scripts that install and uninstall.

KIND=systemd
UNIT=mlx-router.service
DEFINITION=${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user/$UNIT

# One that waits for its restart after a crash is not active, and still has to be stopped.
is_loaded() {
  case "$(systemctl --user is-active "$UNIT" 2>/dev/null)" in
    "" | inactive | failed | unknown) return 1 ;;
  esac
}

# The folder that the definition was installed to; nothing if it names none. It may have been edited.
installed_folder() {
  local folder
  folder=$(sed -n 's|^ *WorkingDirectory *= *\(/.*\)|\1|p' "$DEFINITION" | tail -n 1)
  [ -n "$folder" ] || folder=$(
    sed -n 's|^ *ExecStart *=[^"]*"\(/.*\)/versions/[^/]*/venv/bin/python".*|\1|p' "$DEFINITION" |
      tail -n 1 | sed 's|\$\$|$|g;s|\\\(.\)|\1|g'
  )
  printf '%s\n' "${folder%/}" | sed 's|%%|%|g'
}

stop_service() {
  echo "stopping the one that runs; its answers may finish"
  systemctl --user stop "$UNIT"
}

start_service() {
  started=$(date '+%Y-%m-%d %H:%M:%S')
  systemctl --user daemon-reload &&
    systemctl --user reset-failed "$UNIT" 2>/dev/null
  systemctl --user enable "$UNIT" && systemctl --user start "$UNIT"
}

has_given_up() { systemctl --user is-failed --quiet "$UNIT"; }

show_errors() { journalctl --user --unit "$UNIT" --since "$started" --lines 20 --no-pager --output cat; }

say_how() {
  printf '%-9s %s\n' \
    "" "journalctl --user -u $UNIT -f" \
    "restart:" "systemctl --user restart $UNIT" \
    "stop:" "systemctl --user stop $UNIT" \
    "start:" "systemctl --user start $UNIT" \
    "remove:" "helper_tools/uninstall-systemd.sh" \
    "" "To run it also while you are not logged in: loginctl enable-linger"
}

forget_service() {
  # Its link among what is started at login may be left over.
  rm -f "$(dirname "$DEFINITION")/default.target.wants/$UNIT"
  systemctl --user daemon-reload
}
