#!/usr/bin/env bash
# An ablation on a GPU machine that has neither this disk nor a network, in at most 9 minutes a call.
#
#   benchmarks/gpu_quality.sh pack DIR SOURCE WEIGHTS.pth [shards.create options]
#       makes DIR, 64 MiB at most: shards_128, shards_64, test_128, test_64 (a part chosen by hash, VAL_SHARE=0.25),
#       inception.safetensors in half precision, wheels/. SOURCE: a caption folder (the options are for its embeddings, say),
#       or a shard folder; TEST=FOLDER then names the test shards. QUALITY=85 is the JPEGs', SIZES="64 128" can be fewer.
#       FROZEN=FILE adds weights of a frozen backbone: frozen.pth or frozen.safetensors in the grid.
#   benchmarks/gpu_quality.sh run DIR OUT GRID.yaml MINUTES
#       runs the grid there, whose paths are shards_64, test_64, inception.pth; brings into OUT results.json, table.md,
#       plot.png, grid.png and generator.safetensors.part_*: cat them together. A results.json that is in OUT already is
#       gone on with. PARALLEL=4 runs share the GPU; DEVICE=cpu tries it out without one.
#
# Wheels beside torch, torchvision, accelerate, safetensors, scipy, timm, Pillow, matplotlib: as in benchmarks/gpu.sh, taken from
# wheels/ (or $WHEELS): jsonargparse docstring-parser typeshed-client simplejpeg torch_fidelity and what they need.
set -uo pipefail
ROOT=$(realpath "$(dirname "$0")/..")
WHEELS=${WHEELS:-$ROOT/wheels}
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

fail() { echo "gpu_quality.sh: $*" >&2; exit 1; }

pack() {
    local dir=$1 source=$2 weights=$3 whole test
    shift 3
    [ -e "$dir" ] && fail "$dir exists; name a new folder"
    mkdir -p "$dir"
    whole=$source test=${TEST:-}
    if [ ! -f "$source/manifest.json" ]; then
        whole=$(mktemp -d) || exit 1
        $PYTHON -m shards.create --input "$source" --out "$whole/train" --size 128 --val_out "$whole/test" \
            --val_share "${VAL_SHARE:-0.25}" "$@" || exit 1
        test=$whole/test whole=$whole/train
    fi
    for size in ${SIZES:-64 128}; do
        $PYTHON -m benchmarks.ablate.pack shards "$whole" "$dir/shards_$size" "$size" "${QUALITY:-85}" || exit 1
        [ -n "$test" ] || continue
        $PYTHON -m benchmarks.ablate.pack shards "$test" "$dir/test_$size" "$size" "${QUALITY:-85}" || exit 1
    done
    $PYTHON -m benchmarks.ablate.pack weights "$weights" "$dir/inception.safetensors" || exit 1
    if [ -n "${FROZEN:-}" ]; then cp "$FROZEN" "$dir/frozen.${FROZEN##*.}" || exit 1; fi
    [ -d "$WHEELS" ] && cp -r "$WHEELS" "$dir/wheels"
    local mib
    mib=$(($(du -sb "$dir" | cut -f1) / 1048576))
    echo "$dir: $mib MiB"
    [ "$mib" -lt 64 ] || fail "$dir takes $mib MiB, more than 63; lower QUALITY or name fewer SIZES"
}

go() {
    local dir out grid=$3 minutes=$4 work
    dir=$(realpath "$1") && mkdir -p "$2" && out=$(realpath "$2") && grid=$(realpath -e "$grid") || exit 1
    cd "$ROOT" || exit 1 # where a variant's `config: configs/...` is looked for
    work=$(mktemp -d) || exit 1
    if compgen -G "$dir/wheels/*.whl" >/dev/null; then
        $PYTHON -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "$dir"/wheels/*.whl || exit 1
        export PYTHONPATH="$PYTHONPATH:$work/site"
    fi
    ln -s "$dir"/shards_* "$work"
    compgen -G "$dir/test_*" >/dev/null && ln -s "$dir"/test_* "$work"
    compgen -G "$dir/frozen.*" >/dev/null && ln -s "$dir"/frozen.* "$work"
    $PYTHON -m benchmarks.ablate.pack unpack "$dir/inception.safetensors" "$work/inception.pth" || exit 1
    cp "$grid" "$work/grid.yaml" || exit 1
    mkdir "$work/out"
    [ -f "$out/results.json" ] && cp "$out/results.json" "$work/out"
    $PYTHON -m benchmarks.ablate "$work/grid.yaml" --out "$work/out" --minutes "$minutes" --device "${DEVICE:-auto}" \
        --parallel "${PARALLEL:-4}" >"$work/said" 2> >(tee "$work/errors" >&2)
    local code=$?
    for name in results.json table.md plot.png grid.png; do
        [ -f "$work/out/$name" ] && cp "$work/out/$name" "$out"
    done
    # Of the runs of this call; where it trained none, what an earlier one brought stays.
    if $PYTHON -m benchmarks.ablate.pack best "$work/out" "$work/generator.safetensors"; then
        rm -f "$out"/generator.safetensors.part_*
        if [ "$(stat -c %s "$work/generator.safetensors")" -le 64000000 ]; then
            split -b 16000000 "$work/generator.safetensors" "$out/generator.safetensors.part_"
        else
            echo "the generator takes more than 64 MB and stays behind"
        fi
    fi
    if [ -f "$out/table.md" ]; then cat "$out/table.md"; else tail -n 5 "$work"/out/runs/*/*.log; fi
    ls -l "$out"
    rm -rf "$work"
    return $code
}

case "${1:-} $#" in
    "pack "[4-9]* | "pack "[1-9][0-9]) shift; pack "$@" ;;
    "run 5") shift; go "$@" ;;
    *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
esac
