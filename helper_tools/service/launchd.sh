# shellcheck shell=bash disable=SC2034
# The service to launchd: a LaunchAgent of this user. Used by the scripts that install and uninstall.

KIND=launchd
LABEL=com.mlx-router.server
DEFINITION=$HOME/Library/LaunchAgents/$LABEL.plist
DOMAIN=gui/$(id -u)

is_loaded() {
  launchctl print "$DOMAIN/$LABEL" >/dev/null 2>&1 || launchctl list "$LABEL" >/dev/null 2>&1
}

# The folder that the definition was installed to; nothing if it names none. It may have been edited,
# also by a program that writes it in the binary form: only plutil, a part of macOS, reads that.
installed_folder() {
  local text part folder
  text=$(plutil -convert xml1 -o - "$DEFINITION" 2>/dev/null || cat "$DEFINITION")
  for part in '<key>WorkingDirectory</key> *<string>\(/[^<]*\)</string>' \
    '<string>\(/[^<]*\)/versions/[^/<]*/mlx-router-service</string>'; do
    folder=$(printf '%s\n' "$text" | LC_ALL=C tr '\n\t' '  ' | LC_ALL=C sed -n "s|.*$part.*|\\1|p" |
      LC_ALL=C sed 's/&lt;/</g;s/&gt;/>/g;s/&quot;/"/g;s/&apos;/'\''/g;s/&amp;/\&/g')
    [ -z "$folder" ] || break
  done
  printf '%s\n' "${folder%/}"
}

# launchctl may return before the server has finished its answers.
stop_service() {
  local limit end
  limit=$(sed -n '/<key>ExitTimeOut/{n;s/[^0-9]//g;p;}' "$DEFINITION" 2>/dev/null || true)
  end=$((SECONDS + 10#${limit:-60} + 5))
  echo "stopping the one that runs; its answers may finish, in at most $((end - SECONDS)) s"
  launchctl bootout "$DOMAIN/$LABEL" 2>/dev/null || launchctl unload "$DEFINITION" 2>/dev/null || true
  while is_loaded; do
    [ "$SECONDS" -lt "$end" ] || fail "$EXIT_FAILED" "$LABEL does not end" \
      "Log out and in again, then run $0 again."
    sleep 0.2
  done
}

start_service() {
  local attempt said=""
  log_start=$(log_size)
  launchctl enable "$DOMAIN/$LABEL" 2>/dev/null || true
  # Right after a bootout, launchd may say "Input/output error" for a moment.
  for attempt in 1 2 3; do
    if said=$(launchctl bootstrap "$DOMAIN" "$DEFINITION" 2>&1); then
      launchctl kickstart "$DOMAIN/$LABEL" 2>/dev/null || true
      return 0
    fi
    [ "$attempt" = 3 ] || sleep 1
  done
  # What there was before bootstrap. It ends with 0 whatever happens.
  launchctl load -w "$DEFINITION" 2>/dev/null || true
  is_loaded && return 0
  echo "launchd refuses the service: $said" >&2
  echo "Log in at the Mac itself: a session over ssh alone has no place for it." >&2
  return 1
}

log_size() {
  [ -f "$INSTALL_DIR/mlx_router.error.log" ] || echo 0
  [ ! -f "$INSTALL_DIR/mlx_router.error.log" ] || wc -c <"$INSTALL_DIR/mlx_router.error.log"
}

new_errors() {
  [ ! -f "$INSTALL_DIR/mlx_router.error.log" ] ||
    tail -c "+$((log_start + 1))" "$INSTALL_DIR/mlx_router.error.log"
}

has_given_up() { new_errors | grep 'mlx-router-service: .* is left off' >/dev/null; }

show_errors() { new_errors | tail -n 20; }

say_how() {
  local plist
  plist=$(printf '%q' "$DEFINITION")
  printf '%-9s %s\n' \
    "" "$INSTALL_DIR/mlx_router.error.log (warnings, errors), mlx_router.log (each start)" \
    "restart:" "launchctl kickstart -k $DOMAIN/$LABEL" \
    "stop:" "launchctl bootout $DOMAIN/$LABEL" \
    "start:" "launchctl bootstrap $DOMAIN $plist" \
    "remove:" "./uninstall-launchd.sh"
}

# launchd finds a definition anew at each login; without it there is nothing to forget.
forget_service() { :; }
