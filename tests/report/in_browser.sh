#!/usr/bin/env bash
# Pages of real runs in headless Chromium: in_browser.sh PROGRAM NODE_MODULES [FOLDER for screenshots]
# Exit status 77, with the reason, where node, the browser or its driver is missing.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
program=$1 modules=$2
skip() {
  echo "skipped: $1"
  exit 77
}
command -v node >/dev/null || skip "node is not here (Debian: apt-get install nodejs)"
browser=$(command -v chromium || command -v chromium-browser || true)
[ -n "$browser" ] || skip "Chromium is not here (Debian: apt-get install chromium)"
[ -e "$modules/playwright-core/package.json" ] || skip "no playwright-core in $modules (scripts/bootstrap --test fetches it)"
[ -e "$modules/vega/build/vega.min.js" ] || skip "no vega in $modules when this was built (scripts/bootstrap fetches it)"

folder=$(mktemp -d "${TMPDIR:-/tmp}/espalier-browser-XXXXXX")
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export OMP_WAIT_POLICY=passive
train() { # FOLDER SETTING…
  local run=$1
  shift
  "$program" train --preset glyphs-demo --quiet --threads 1 --run-dir "$run" --set data.train_size=700 --set data.test_size=100 \
    --set 'model.widths=[20, 12]' --set train.epochs=12 --set train.batch_size=32 --set log.every=1it "${@/#/--set=}"
}
# Two alphas, two seeds; connections that move; and a name that would be markup.
train "a1" reparam.alpha=1.5 run.seed=1
train "a2" reparam.alpha=1.5 run.seed=2
train "b1" reparam.alpha=3 run.seed=1
train "b2" reparam.alpha=3 run.seed=2
name="<script>document.title='taken'<script> \"double\" 'single' & größe ✓"
train "$name" method.name=rigl method.every=10it
"$program" prune a1 --keep 0.05,0.2,1 --quiet >/dev/null
"$program" prune a2 --keep 0.05,0.2,1 --quiet >/dev/null
"$program" report "$name" -o one.html >/dev/null
"$program" report a1 a2 b1 b2 --baseline "$name" -o several.html >/dev/null

# The same figures as files.
"$program" report a1 --format svg --figure loss,weights -o figures >/dev/null
grep -q 'Vega\|<svg' figures/loss.svg
"$program" report a1 --format json --figure weights -o weights.json >/dev/null
grep -q '"concat"' weights.json
# A run of one epoch: its lines have one point.
train short train.epochs=1
"$program" report short --format svg --figure accuracy -o short.svg >/dev/null
grep -q 'aria-roledescription="point"' short.svg
if grep -q '>1\.000000<' short.svg; then echo "the one epoch is written as 1.000000" && exit 1; fi

node "$here/in_browser.cjs" "$browser" "$modules/playwright-core" "$folder" "${3:-}"
