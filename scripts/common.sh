# shellcheck shell=bash
# Sourced by the scripts beside it.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

say() { printf '%s\n' "$*" >&2; }

# quietly LOG COMMAND…: the output goes to LOG; if the command fails, its end is shown. Returns its status.
quietly() {
  local log=$1 status=0
  shift
  "$@" >"$log" 2>&1 </dev/null || status=$?
  if [ "$status" -ne 0 ]; then
    tail -n 30 "$log" >&2
    say "error: '$*' failed (status $status); all of it: $log"
  fi
  return "$status"
}

# Compile jobs: the cores that this process may use, and 1.5 GB of memory for each. ESPALIER_JOBS overrides.
jobs_for_this_machine() {
  local cores memory_kb limit
  cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || echo 1)
  memory_kb=$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo 2>/dev/null || true)
  for limit in /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; do
    limit=$(cat "$limit" 2>/dev/null || true)
    case $limit in
      '' | max | *[!0-9]*) ;;
      *) [ $((limit / 1024)) -lt "${memory_kb:-0}" ] && memory_kb=$((limit / 1024)) ;;
    esac
  done
  local by_memory=$((${memory_kb:-0} / 1500000))
  [ "$by_memory" -ge 1 ] || by_memory=1
  echo "${ESPALIER_JOBS:-$((cores < by_memory ? cores : by_memory))}"
}

# configure_and_build TARGET [cmake option…]: build/release. One script at a time in one tree.
configure_and_build() {
  local target=$1 jobs
  shift
  jobs=$(jobs_for_this_machine)
  mkdir -p build
  exec 9>build/.lock
  flock -n 9 || { say "waiting for another build in $root/build"; flock 9; }
  say "configuring build/release"
  # Descriptor 9 stays here: a compiler cache's daemon would hold the lock for ever.
  quietly build/configure.log cmake --preset release "$@" 9>&- || return 1
  say "building $target ($jobs jobs)"
  cmake --build build/release --target "$target" -j "$jobs" >&2 </dev/null 9>&- || return 1
  exec 9>&-
}
