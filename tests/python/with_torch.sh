#!/bin/sh
# with_torch.sh PYTHON VERSION SCRIPT ARGUMENT…: runs SCRIPT where this Python has torch VERSION (two numbers count); otherwise status
# 77, which CTest counts as skipped.
python=$1 wanted=$2
shift 2
found=$("$python" -c 'import torch; print(torch.__version__)' 2>&1 | tail -n 1)
case $found in
  "${wanted%.*}".*) exec "$python" -B "$@" ;;
esac
echo "skipped: '$python' has no torch ${wanted%.*} ($found). Debian: sudo apt-get install python3-torch; elsewhere: -DESPALIER_PYTHON=…"
exit 77
