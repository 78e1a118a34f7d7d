#!/bin/sh
# Runs one step of a build: prints its name before and its duration after.
#
#   step.sh NAME COMMAND ARGUMENT…
set -eu

name=$1
shift
began=$(date +%s)
printf '=== %s\n' "$name"
status=0
"$@" || status=$?
took=$(($(date +%s) - began))
if [ "$status" -eq 0 ]; then
    printf -- '--- %s: %d s\n' "$name" "$took"
else
    printf -- '--- %s: FAILED after %d s\n' "$name" "$took" >&2
fi
exit "$status"
