#!/bin/sh
# Unpacks the release that lies beside this file into the work directory, unless it is there already.
#   sh install.sh WORK
# Offline, quick when there is nothing to do (classic calls it at every start of the nucleus), safe to cut off.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
for python in "${OPENDCU_PYTHON:-python3}" python3.13 python3.12 python3.11; do
    if found=$(command -v "$python"); then # with its path: without PATH Python would not know itself
        exec "$found" -B "$here/launch.py" install "$@"
    fi
done
echo "opendcu: this box has no python3" >&2
exit 1
