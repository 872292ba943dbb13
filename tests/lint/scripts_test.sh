#!/usr/bin/env bash
# The scripts themselves, with stand-ins for the tools that they call, in a path with spaces, under a strict umask.
# shellcheck disable=SC2016
set -euo pipefail
umask 077
source_dir=$1
tree=$(mktemp -d "${TMPDIR:-/tmp}/espalier scripts XXXXXX")
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree/scripts" "$tree/bin" "$tree/elsewhere"
cp "$source_dir"/scripts/* "$tree/scripts/"
cd "$tree/elsewhere"
calls=$tree/calls
stand_in() { # NAME BODY: logs its arguments, then does BODY
  printf '#!/usr/bin/env bash\necho "%s $*" >>"%s"\n%s\n' "$1" "$calls" "$2" >"$tree/bin/$1"
  chmod +x "$tree/bin/$1"
}
fail() {
  echo "failed: $1"
  cat "$calls" output 2>/dev/null || true
  exit 1
}
expect() { grep -qF -- "$1" "${2:-output}" || fail "no \"$1\" in ${2:-output}"; }
run() { # STATUS COMMAND…
  local wanted=$1 status=0
  shift
  : >"$calls"
  PATH="$tree/bin:$PATH" "$@" >output 2>&1 </dev/null || status=$?
  [ "$status" -eq "$wanted" ] || fail "$*: status $status, expected $wanted"
}

# --- bootstrap: nothing missing: silent
stand_in dpkg-query 'shift 2; for p in "$@"; do [ "$p" = "${MISSING:-}" ] || echo "installed $p"; done'
stand_in apt-get 'case "$*" in *"install "*) [ -z "${BROKEN:-}" ] || { echo "E: no network"; exit 100; } ;; esac'
stand_in id 'echo "${AS_USER:-0}"'
stand_in cmake '[ -z "${OFFLINE:-}" ] || { echo "CMake Error: vega could not be fetched"; exit 1; }'
run 0 "$tree/scripts/bootstrap"
[ ! -s output ] || fail "not silent"
expect "cmake -DPACKAGES=vega;vega-lite -DTO=$tree/build/node_modules -P src/report/page/fetch.cmake" "$calls"
run 0 "$tree/scripts/bootstrap" --test
expect "cmake -DPACKAGES=vega;vega-lite;playwright-core " "$calls"
OFFLINE=1 run 0 "$tree/scripts/bootstrap"
expect "tables and no drawings"
expect "vega could not be fetched"
if grep -q '^apt-get' "$calls"; then fail "apt-get was called"; fi

# --- one package missing, as root: only that one is installed, no update
MISSING=libdnnl-dev run 0 "$tree/scripts/bootstrap"
expect "install --no-install-recommends libdnnl-dev" "$calls"
if grep -q 'update' "$calls"; then fail "needless update"; fi

# --- the tests' packages only with --test
for package in libgtest-dev python3-torch; do
  MISSING=$package run 0 "$tree/scripts/bootstrap"
  if grep -q '^apt-get' "$calls"; then fail "$package is not needed here"; fi
  MISSING=$package run 0 "$tree/scripts/bootstrap" --test
  expect "install --no-install-recommends $package" "$calls"
done

# --- it can't: the package line, status 2
MISSING=libdnnl-dev BROKEN=1 run 2 "$tree/scripts/bootstrap"
expect "E: no network"
expect "apt-get install --no-install-recommends libdnnl-dev"
expect "update" "$calls"
stand_in sudo 'exit 1'
MISSING=libdnnl-dev AS_USER=1000 run 2 "$tree/scripts/bootstrap"
expect "sudo would ask for a password"
expect "apt-get install --no-install-recommends libdnnl-dev"
stand_in sudo '[ "$1" = -n ] && shift; "$@"'
MISSING=libdnnl-dev AS_USER=1000 run 0 "$tree/scripts/bootstrap"
expect "sudo -n env DEBIAN_FRONTEND=noninteractive" "$calls"
run 2 "$tree/scripts/bootstrap" --tset

# --- demo: a new run directory every time, arguments handed on
stand_in cmake 'case "$*" in *--build*) mkdir -p build/release; cp "$STAND_IN_ESPALIER" build/release/espalier ;; esac'
stand_in espalier 'while [ $# -gt 0 ]; do [ "$1" = --run-dir ] && mkdir -p "$2"; shift; done; exit "${TRAIN_STATUS:-0}"'
export STAND_IN_ESPALIER=$tree/bin/espalier
run 0 "$tree/scripts/demo"
expect "cmake --preset release -DESPALIER_TESTS=OFF -DESPALIER_EXAMPLES=OFF" "$calls"
expect "espalier train --preset glyphs-demo --run-dir runs/demo" "$calls"
[ -d "$tree/runs/demo" ] || fail "no run directory"
run 0 "$tree/scripts/demo" --set run.seed=2
expect "espalier train --preset glyphs-demo --run-dir runs/demo-2 --set run.seed=2" "$calls"
TRAIN_STATUS=5 run 5 "$tree/scripts/demo"

# --- test: counts what ctest reports, hands arguments on
stand_in ctest 'while [ $# -gt 0 ]; do
  [ "$1" = --output-junit ] && printf "<?xml version=\"1.0\"?>\n<testsuite name=\"x\"\n\ttests=\"9\"\n\tfailures=\"%s\"\n\tdisabled=\"1\"\n\tskipped=\"2\"\n\t>\n" "${FAILURES:-0}" >"$2"
  shift
done
exit "${CTEST_STATUS:-0}"'
last() { [ "$(tail -n 1 output)" = "$1" ] || fail "last line: $(tail -n 1 output), expected: $1"; }
run 0 "$tree/scripts/test" -R methods
expect "-R methods" "$calls"
last "6 passed, 0 failed, 3 skipped"
FAILURES=2 CTEST_STATUS=8 run 1 "$tree/scripts/test"
last "4 passed, 2 failed, 3 skipped"
CTEST_STATUS=8 run 1 "$tree/scripts/test" # ctest failed and no test did
last "5 passed, 1 failed, 3 skipped"
stand_in ctest 'exit 0'
run 1 "$tree/scripts/test"
last "0 passed, 1 failed"
stand_in cmake 'case "$*" in *--build*) exit 1 ;; esac'
run 1 "$tree/scripts/test"
last "0 passed, 1 failed"
run 1 "$tree/scripts/demo"
echo "scripts: all as expected"
