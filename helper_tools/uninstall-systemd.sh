#!/bin/bash
# Removes the service that install-systemd.sh made. See --help.
set -euo pipefail

# shellcheck source=helper_tools/service/uninstall.sh
. "$(dirname "${BASH_SOURCE[0]}")/service/uninstall.sh"
# shellcheck source=helper_tools/service/systemd.sh
. "$SOURCE/helper_tools/service/systemd.sh"

usage() {
  cat <<END
usage: helper_tools/uninstall-systemd.sh [options]

Stops the service of MLX Router and removes it with its program. Asks first. Config and logs stay
where they are, models too.

options:
  -y, --yes      do not ask
  --purge        remove config and logs as well
  --dry-run      show what would be done, and change nothing
  -h, --help     show this help

environment:
  INSTALL_DIR    the folder it was installed to (default: ~/mlx_router_app)

$EXIT_CODES
END
}

uninstall_service "$@"
