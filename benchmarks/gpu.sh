#!/usr/bin/env bash
# The checks that need an NVIDIA card, made ready for a bare machine without internet.
#
#   benchmarks/gpu.sh pack                      here: put what such a machine lacks into gpu-wheels.tar.xz
#   benchmarks/gpu.sh all [--device cpu] [--out DIR]    there: tests, then head, then extract, then the table
#   benchmarks/gpu.sh tests|head|extract|table  one of them
#
# There, python3 has torch and the usual scientific packages. Each part writes its figures as they come
# (benchmarks/gpu_check.py), so that a run that is stopped keeps them; a part that fails stops no other.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
python=${PYTHON:-python3}
archive=$here/gpu-wheels.tar.xz
# Of polars a version that is small; the others are recent ones.
wheels="polars==1.20.0 faiss-cpu==1.15.1 zarr==3.1.6 numcodecs==0.16.6 donfig==0.8.1.post1
    google-crc32c==1.9.0 openslide-python==1.4.7 openslide-bin==4.0.1.2 simplejpeg==1.9.0 pooch==1.9.0
    platformdirs==4.14.8"

pack() {
    local folder platforms=()
    folder=$(mktemp -d) || return
    for platform in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
        platforms+=(--platform "${platform}_x86_64")
    done
    # shellcheck disable=SC2086
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
        --implementation cp "${platforms[@]}" -d "$folder/wheels" $wheels &&
        for wheel in "$folder"/wheels/*.whl; do
            # Unpacked, since what a wheel has compressed xz cannot make smaller.
            "$python" -m zipfile -e "$wheel" "$folder/site" || return
        done &&
        tar -cf - -C "$folder" site | xz -9e -T2 >"$archive"
    local status=$?
    rm -rf "$folder"
    ls -l "$archive"
    return $status
}

if [ "${1:-}" = pack ]; then
    pack
    exit
fi

work=$(mktemp -d) || exit
trap 'rm -rf "$work"' EXIT
# The repository's root is the package: a link of its name makes it importable without an installation.
ln -s "$root" "$work/mmap_st"
export PYTHONPATH=$work${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
if [ -f "$archive" ] && ! "$python" -c "import faiss, openslide, polars, simplejpeg, zarr" 2>/dev/null; then
    tar -xJf "$archive" -C "$work" || exit
    export PYTHONPATH=$PYTHONPATH:$work/site
fi

part=${1:?"pack, tests, head, extract, all or table"}
shift

# A part that hangs must not take the time of the others; a rehearsal may take as long as it likes.
check() {
    local limit
    case "$1 $*" in
    *"--device cpu"*) limit=0 ;;
    tests*) limit=90 ;;
    head*) limit=75 ;;
    *) limit=220 ;;
    esac
    timeout --kill-after=5 "$limit" "$python" "$here/gpu_check.py" "$@" --scratch "$work"
}

if [ "$part" != all ]; then
    check "$part" "$@"
    exit
fi
# Meanwhile a slide is painted and the kernels are compiled, which takes seconds that no figure holds.
check slide "$@" &
status=0
check tests "$@" || status=1
wait $!
check head "$@" || status=1
check extract "$@" || status=1
check table "$@"
exit $status
