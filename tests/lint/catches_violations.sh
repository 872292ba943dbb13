#!/usr/bin/env bash
# scripts/lint must fail where there is something to find: a small tree with one fault of each kind.
set -euo pipefail
source_dir=$1
tree=$(mktemp -d "${TMPDIR:-/tmp}/espalier lint XXXXXX")
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree/scripts" "$tree/src/kernels" "$tree/include/espalier/nn"
cp "$source_dir"/scripts/{common.sh,lint} "$tree/scripts/"
lint() { "$tree/scripts/lint" "$@" 2>&1; }
expect() { # TEXT OUTPUT
  if ! grep -qF "$1" <<<"$2"; then
    printf 'expected "%s" in:\n%s\n' "$1" "$2"
    exit 1
  fi
}

printf '#include "espalier/ops/power.h"\n#include "nn/private.h"\n#include <vector>\n' >"$tree/include/espalier/nn/a.h"
out=$(lint arrows files) && { echo "private include in a public header: not found"; exit 1; }
expect 'include/espalier/nn/a.h:2: a public header includes a private one' "$out"

printf '#include "espalier/ops/power.h"\n' >"$tree/include/espalier/nn/a.h"
out=$(lint arrows files) || { echo "nothing wrong, but: $out"; exit 1; }

printf '#include "espalier/core/error.h"\n#include "espalier/nn/a.h"\n#include <torch/torch.h>\n' >"$tree/src/kernels/b.cpp"
out=$(lint arrows) && { echo "arrows: not found"; exit 1; }
expect 'src/kernels/b.cpp:2: kernels must not include nn' "$out"
expect 'src/kernels/b.cpp:3: kernels must not use torch' "$out"
[ "$(grep -c 'b.cpp:' <<<"$out")" -eq 2 ]
rm "$tree/src/kernels/b.cpp"

printf 'see /%s/ada/data\n' home >"$tree/notes.md"
out=$(lint files) && { echo "home path: not found"; exit 1; }
expect 'notes.md:1:' "$out"
rm "$tree/notes.md"
head -c 1000001 /dev/zero >"$tree/big.bin"
out=$(lint files) && { echo "big file: not found"; exit 1; }
expect 'big.bin: 1000001 bytes' "$out"
