#!/usr/bin/env bash
# Plays nvcc or a C++ compiler for builds of which nothing ever runs: it says a version, and writes what it is asked to
# write, empty.
# cudarc reads the version from the fourth line.
[ "${1:-}" = --version ] && printf '%s\n' nvcc - - 'Cuda compilation tools, release 13.0, V13.0.88' && exit
folder= source=
while [ $# -gt 0 ]; do
  case "$1" in
    -o) : >"$2"; shift ;;
    --output-directory) folder=$2; shift ;;
    *.cu) source=$1 ;;
  esac
  shift
done
[ -z "$folder" ] || : >"$folder/$(basename "$source" .cu).ptx"
