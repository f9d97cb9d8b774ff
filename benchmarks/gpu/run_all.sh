#!/usr/bin/env bash
# Everything that needs a GPU, in under ten minutes on a fresh machine: build, tests, compute-sanitizer, the table of times beside PyTorch.
# Needs the CUDA toolkit, CMake, a C++20 compiler, and Python with NumPy, pybind11 and pytest; PyTorch for its half of the table; no network.
#
#   benchmarks/gpu/run_all.sh [FOLDER]      results go to FOLDER, else to $OUT, else to ./gpu-results
#
# Each part has its own time limit, and a part that fails or hangs costs the others nothing. PARTS="build table" runs only those named;
# SITE=FOLDER takes a package that is built already. Exit status 0: every part that could run here passed.
set -uo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
out=$(mkdir -p "${1:-${OUT:-gpu-results}}" && cd "${1:-${OUT:-gpu-results}}" && pwd)
log=$out/log.txt
parts=${PARTS:-facts build tests hopper table steps memcheck racecheck}
python=${PYTHON:-python3}
# The toolkit's own folder is on few paths; CMake looks for nvcc nowhere else.
command -v nvcc > /dev/null || PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
site=${SITE:-$work/site}
export PYTHONUNBUFFERED=1 PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
: > "$log"
summary=()
failed=0
planned=0
began=$SECONDS

say() { printf '%s\n' "$*" | tee -a "$log"; }

# part NAME SECONDS COMMAND...: runs it with a limit, its output into the log and its end to the screen. Time that parts before it left
# over is added to the limit, so that the sum stays.
part() {
  local name=$1 limit start=$SECONDS status words group
  [[ " $parts " == *" $name "* ]] || return 0
  planned=$((planned + $2))
  limit=$((planned - (SECONDS - began)))
  shift 2
  ((limit > 10)) || limit=10
  say "== $name (at most $limit s)"
  timeout --kill-after=5 "$limit" "$@" > "$work/part" 2>&1 &
  group=$!
  wait "$group"
  status=$?
  kill -KILL -- "-$group" 2> /dev/null  # timeout's process group: whatever a part that was stopped left behind
  cat "$work/part" >> "$log"
  tail -n "${LINES_SHOWN:-12}" "$work/part"
  case $status in
    0) words=passed ;;
    77) words="not run: $(tail -n 1 "$work/part")" ;;
    124 | 137) words="STOPPED after $limit s" ;;
    *) words="FAILED (status $status)" ;;
  esac
  [[ $status == 0 || $status == 77 ]] || failed=1
  summary+=("$(printf '%-10s %4d s  %s' "$name" $((SECONDS - start)) "$words")")
}

facts() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit --format=csv || echo "nvidia-smi failed"
  nvcc --version | tail -n 2
  "$python" -c 'import sys, importlib.util as u
print("python", sys.version.split()[0], {n: u.find_spec(n) is not None for n in "numpy torch pybind11 pytest pytest_timeout xdist scikit_build_core cupy jax ninja".split()})'
  git -C "$root" rev-parse HEAD 2> /dev/null || true
}

build() {
  [[ -z ${SITE:-} ]] || { echo "taken from SITE"; return 0; }
  local arch
  arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
  [[ $arch == 90 ]] && arch=90a
  [[ -n $arch ]] || arch=90a
  # Code for this GPU only: the other targets are compiled elsewhere and would only take time here.
  if "$python" -c 'import scikit_build_core, pybind11' 2> /dev/null &&
    "$python" -m pip install -q --no-build-isolation --no-deps --no-index --no-compile --target "$site" \
      -C cmake.define.FASTCONV_CUDA=ON -C cmake.define.FASTCONV_CUDA_PTX=OFF -C "cmake.define.FASTCONV_CUDA_ARCHITECTURES=$arch" .; then
    echo "built by pip for sm_$arch"
    return 0
  fi
  echo "pip could not build the package: CMake alone"
  local generator=()
  command -v ninja > /dev/null && generator=(-G Ninja)
  rm -rf "$site"
  cmake "${generator[@]}" -S . -B "$work/build" -DFASTCONV_CUDA=ON -DFASTCONV_CUDA_PTX=OFF "-DFASTCONV_CUDA_ARCHITECTURES=$arch" -DCMAKE_BUILD_TYPE=Release \
    "-Dpybind11_DIR=$("$python" -m pybind11 --cmakedir)" "-DPython_EXECUTABLE=$(command -v "$python")" "-DCMAKE_INSTALL_PREFIX=$site" &&
    cmake --build "$work/build" && cmake --install "$work/build" && cp -r python/fastconv/. "$site/fastconv/"
}

# gpu_tests EXPRESSION: the tests marked gpu that it names. Several processes, so that one whose kernel destroys its context costs few others.
gpu_tests() {
  local options=(-m gpu -q -rfE -p no:cacheprovider --no-header -k "$1") status
  "$python" -c 'import xdist' 2> /dev/null && options+=(-n 6 --dist loadfile)
  "$python" -c 'import pytest_timeout' 2> /dev/null && options+=(--timeout 25 --timeout-method thread)
  "$python" -m pytest "${options[@]}" tests 2>&1 | tee "$work/tests"
  status=$?
  # Nothing failed, but nothing ran either: no GPU, or no such tests.
  if [[ $status == 5 ]] || { [[ $status == 0 ]] && ! grep -q ' passed' "$work/tests"; }; then
    "$python" -c 'import fastconv; print(fastconv.cuda.why_unavailable() or "no test of that name")'
    return 77
  fi
  return $status
}

# sanitized TOOL: the small cases of every kernel under compute-sanitizer.
sanitized() {
  local tool
  tool=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer /usr/local/cuda/compute-sanitizer/compute-sanitizer 2> /dev/null | head -n 1)
  [[ -n $tool ]] || { echo "compute-sanitizer is not installed here"; return 77; }
  "$tool" --tool "$1" --target-processes all --error-exitcode 9 --print-limit 5 "$python" -m fastconv.benchmarks.gpu.small_cases
}

export -f facts build gpu_tests sanitized
export python root site work

# 590 s in all, were each part to take all of its time.
part facts 10 bash -c facts
part build 185 bash -c build
part tests 100 bash -o pipefail -c 'gpu_tests "not wgmma"'
part hopper 35 bash -o pipefail -c 'gpu_tests wgmma'
LINES_SHOWN=60 part table 135 "$python" -m fastconv.benchmarks.gpu.table --json "$out/table.json" --report "$out/table.md"
LINES_SHOWN=60 part steps 45 "$python" -m fastconv.benchmarks.gpu.steps --json "$out/steps.json"
part memcheck 40 bash -c 'sanitized memcheck'
part racecheck 40 bash -c 'sanitized racecheck'

say ""
say "Summary ($((SECONDS - began)) s in all; results in $out)"
for line in "${summary[@]}"; do say "  $line"; done
exit $failed
