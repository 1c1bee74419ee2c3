#!/usr/bin/env bash
# Installs what some tests need of the system: a Slurm, tools of the network, checkers of scripts and units.
#
# Does nothing where all is there, nor where it cannot: those tests then say that they are skipped, and why. Fails only
# where installing was possible and went wrong.
set -euo pipefail

declare -A packages=([sbatch]=slurm-wlm [munged]=munge [ip]=iproute2 [shellcheck]=shellcheck [openssl]=openssl
    [systemd-analyze]=systemd [hostname]=hostname [unshare]=util-linux)
wanted=()
PATH=$PATH:/usr/sbin:/sbin
for program in "${!packages[@]}"; do
    command -v "$program" >/dev/null || wanted+=("${packages[$program]}")
done
[ "${#wanted[@]}" -gt 0 ] || exit 0

cannot() {
    echo "tests/install_system.sh: ${wanted[*]} not installed ($1); tests that need them are skipped" >&2
    exit 0
}
[ "$(id -u)" -eq 0 ] || cannot "only root can"
command -v apt-get >/dev/null || cannot "there is no apt-get"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt-get update >"$log" 2>&1 || cannot "apt-get update fails: $(tail -n 1 "$log")"
apt-cache show "${wanted[@]}" >/dev/null 2>&1 || cannot "apt knows no such packages"
# RUNLEVEL=1: the packages' own services are not started.
if ! RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${wanted[@]}" >"$log" 2>&1; then
    cat "$log" >&2
    exit 1
fi
