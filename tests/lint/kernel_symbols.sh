#!/bin/sh
# kernel_symbols.sh OBJECT...: no weak definition in the objects of instruction sets (avx2.cpp, avx512.cpp, scalar.cpp).
found=0
for object in "$@"; do
  case $object in
    */avx2.cpp* | */avx512.cpp* | */scalar.cpp*)
      checked=yes
      if nm -C "$object" | grep -E ' [WVu] '; then
        echo "$object: defines the above for everybody, compiled for one instruction set"
        found=1
      fi
      ;;
  esac
done
[ "$checked" = yes ] || { echo "none of the objects of instruction sets was given"; exit 1; }
exit $found
