#!/usr/bin/env bash
# From a bare machine to the end of a command: a minimal Debian 12 with git and bash only, this repository's last
# commit, and the wall time of `./gr-localize COMMAND` (default: demo), first start and second.
#
# Needs root, debootstrap, 4 GB in ${TMPDIR:-/tmp} and the network; everything is removed at the end.
# usage: benchmarks/bare_machine.sh [COMMAND…]
set -euo pipefail

# mounts in a namespace of their own: they end with this script, whatever happens
[ "${1-}" = --inside ] || exec unshare --mount --propagation private -- "$0" --inside "$@"
shift
[ $# -gt 0 ] || set -- demo

root=$(dirname -- "$(dirname -- "$(readlink -f -- "$0")")")
scratch=$(mktemp -d "${TMPDIR:-/tmp}/bare-machine.XXXXXX")
bare=$scratch/root
cleanup() {
  umount -R "$bare/proc" "$bare/dev/shm" 2>/dev/null || true
  rm -rf --one-file-system -- "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# shellcheck disable=SC2016
mirror=$(apt-get indextargets --format '$(REPO_URI)' 2>/dev/null | grep -m 1 -E '/debian/?$' || true)
echo "making a bare Debian 12 …" >&2
debootstrap --variant=minbase --include=git bookworm "$bare" "${mirror:-http://deb.debian.org/debian}" \
  >"$scratch/debootstrap.log" 2>&1 || { tail "$scratch/debootstrap.log" >&2; exit 1; }
mkdir -p "$bare/dev/shm"
mount -t proc proc "$bare/proc"
mount -t tmpfs tmpfs "$bare/dev/shm"
git clone -q --no-hardlinks -- "$root" "$bare/root/gr-localize"

# how this host reaches its package registries: proxies, certificates, pip's settings
apt-config dump | grep -i '^Acquire::.*proxy' >"$bare/etc/apt/apt.conf.d/99host" || true
for file in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
  [ ! -f "$file" ] || install -D -m 644 -- "$file" "$bare$file"
done
# once more where Debian's own certificates, when they come, do not overwrite it
[ ! -f /etc/ssl/certs/ca-certificates.crt ] ||
  install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$bare/usr/local/share/ca-certificates/host.crt"
mapfile -t environment < <(env | grep -iE '^([a-z_]+_proxy|[a-z_]*(ca_bundle|ssl_cert_file|pip_)[a-z_]*)=')

start() { # WHAT COMMAND…: run in the bare machine, say how long it took
  local what=$1 begin status=0
  shift
  begin=$(date +%s.%N)
  chroot "$bare" env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 "${environment[@]}" \
    bash -c 'cd /root/gr-localize && exec ./gr-localize "$@"' gr-localize "$@" || status=$?
  printf '%s: %.1f s, exit %d\n' "$what" "$(echo "$(date +%s.%N) $begin" | awk '{print $1 - $2}')" "$status"
  return "$status"
}

before=$(du -smx "$bare" | cut -f 1)
start "first start of ./gr-localize $*" "$@"
start "second start of ./gr-localize $*" "$@"
echo "disk: $(($(du -smx "$bare" | cut -f 1) - before)) MB more than the bare machine's $before MB"
