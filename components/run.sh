#!/bin/sh
# Becomes the program: every word is handed on by exec, so that signals reach it.
#   sh run.sh WORK COMPONENT
set -eu
here=$(cd "$(dirname "$0")" && pwd)
for python in "${OPENDCU_PYTHON:-python3}" python3.13 python3.12 python3.11; do
    if found=$(command -v "$python"); then # with its path: without PATH Python would not know itself
        exec "$found" -B "$here/launch.py" run "$@"
    fi
done
echo "opendcu: this box has no python3" >&2
exit 1
