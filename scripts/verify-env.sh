#!/bin/sh
# Are all settings there and acceptable? Of the running stack, or of a file: scripts/verify-env.sh --file production.env
exec "$(dirname -- "$(readlink -f -- "$0")")/venture" verify-env "$@"
