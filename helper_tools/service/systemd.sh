# shellcheck shell=bash disable=SC2034
# The service to systemd: a unit of this user. Used by the scripts that install and uninstall.

KIND=systemd
UNIT=mlx-router.service
DEFINITION=${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user/$UNIT

is_loaded() { systemctl --user is-active --quiet "$UNIT"; }

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
