#!/bin/bash
# What launchd starts: run.sh COMMAND..., the server. launchd restarts what crashes, for ever; this
# passes the crash on to it, but after MAX_CRASHES within WITHIN_SECONDS it says so and ends with 0,
# which launchd leaves alone. The times of crashes are in .crashes of the working directory.
set -uo pipefail

MAX_CRASHES=5
WITHIN_SECONDS=600
CRASHES=.crashes

server=""
told_to_stop=""

# launchd signals this process only, so signals are handed on.
# shellcheck disable=SC2317,SC2329
stop() {
  if [ -n "$server" ]; then
    told_to_stop=yes
    kill -TERM "$server" 2>/dev/null
  else
    told_to_stop=early
  fi
}
# shellcheck disable=SC2317,SC2329
reload() { [ -z "$server" ] || kill -HUP "$server" 2>/dev/null; }
trap stop TERM INT
trap reload HUP

report() { echo "$(date '+%Y-%m-%d %H:%M:%S') mlx-router-service: $*" >&2; }

# launchd starts what has ended well only when it is told to.
leave_off() {
  rm -f "$CRASHES"
  exit 0
}

"$@" </dev/null &
server=$!
[ "$told_to_stop" != early ] || kill -TERM "$server" 2>/dev/null

# A signal that is handled ends `wait`, and the server is still there.
while :; do
  wait "$server"
  code=$?
  kill -0 "$server" 2>/dev/null || break
done

[ -z "$told_to_stop" ] || leave_off
[ "$code" -ne 0 ] || leave_off
how_to_start="launchctl kickstart gui/$(id -u)/com.mlx-router.server"
if [ "$code" -eq 2 ]; then
  report "the server cannot start with this config, and is left off." \
    "Correct the config, then: $how_to_start"
  leave_off
fi

now=$(date +%s)
recent=1
: >"$CRASHES.new"
if [ -f "$CRASHES" ]; then
  while read -r at; do
    case "$at" in "" | *[!0-9]*) continue ;; esac
    if [ $((now - 10#$at)) -lt "$WITHIN_SECONDS" ]; then
      echo "$at" >>"$CRASHES.new"
      recent=$((recent + 1))
    fi
  done <"$CRASHES"
fi
echo "$now" >>"$CRASHES.new"
mv -f "$CRASHES.new" "$CRASHES"
if [ "$recent" -ge "$MAX_CRASHES" ]; then
  report "the server has crashed $recent times within $((WITHIN_SECONDS / 60)) minutes" \
    "(the last time with code $code), and is left off. Find the cause above, then: $how_to_start"
  leave_off
fi
report "the server has ended with code $code ($recent of $MAX_CRASHES); it is started again"
exit "$code"
