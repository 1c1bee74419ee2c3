#!/bin/sh
# A Dask cluster for one command: the scheduler here, workers on other machines over SSH; all of them end with it.
#
#   over_ssh.sh ADDRESS HOST... -- COMMAND...
#   over_ssh.sh 10.0.0.1 10.0.0.2 10.0.0.3 -- expertmine score /srv/expertmine/run --address tls://10.0.0.1:8786
#
# ADDRESS is this machine's, as the hosts see it; HOST is a name for ssh, and the address at which the others reach it.
# Every machine needs dask.yaml in ~/.config/dask and the certificates that it names. Settings from the environment:
#
#   PORT     of the scheduler [8786]
#   WORKERS  processes per host; -1 for one per core [-1]
#   DASK     the program on all machines [dask]
set -eu

usage() {
    echo "usage: over_ssh.sh ADDRESS HOST... -- COMMAND..." >&2
    exit 2
}

[ $# -ge 4 ] || usage
address=$1
shift
hosts=
while [ "$1" != -- ]; do
    hosts="$hosts $1"
    shift
    [ $# -ge 2 ] || usage
done
[ -n "$hosts" ] || usage
shift

port=${PORT:-8786}
dask=${DASK:-dask}
started=

# shellcheck disable=SC2317 # called by the trap
stop() {
    # Workers end when their scheduler is gone.
    for process in $started; do
        kill "$process" 2>/dev/null || true
    done
    for process in $started; do
        wait "$process" 2>/dev/null || true
    done
}
trap stop EXIT

"$dask" scheduler --protocol tls --host "$address" --port "$port" --dashboard-address 127.0.0.1:8787 &
started=$!
for host in $hosts; do
    # Only the program's name is expanded on the other side.
    ssh -o BatchMode=yes "$host" exec "$dask" worker "tls://$address:$port" --host "${host#*@}" \
        --nworkers "${WORKERS:--1}" --nthreads 1 --no-dashboard --dashboard-address 127.0.0.1:0 \
        --death-timeout 60 </dev/null &
    started="$started $!"
done

# In the foreground, so that Ctrl-C reaches the command: it reports its progress, and everything else ends after it.
"$@"
