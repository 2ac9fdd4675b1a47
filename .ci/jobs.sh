# The jobs of .ci/run. $root is the checkout, $work a folder that goes when CI ends.

python=$root/.venv/bin/python
export PATH=$root/.venv/bin:$PATH

# The command under a marker in the README: what is promised there is what runs here.
readme_command() {
  sed -n "/<!-- command: $1 -->/,/^\`\`\`\$/p" README.md | sed '1,2d;$d'
}

# A planted bug has to be found.
must_fail() {
  local log
  log=$(mktemp "$work/planted.XXXXXX")
  if "$@" >"$log" 2>&1; then
    echo "planted bug NOT found: $*"
    tail -20 "$log"
    return 1
  fi
  echo "planted bug found: $*"
}

# together COMMAND...: each a line of shell; all at the same time, for those that keep one core busy.
together() {
  local pids=() failed=0 i
  for ((i = 1; i <= $#; ++i)); do
    (eval "${!i}") >"$work/together.$i.log" 2>&1 &
    pids+=($!)
  done
  for ((i = 1; i <= $#; ++i)); do
    if wait "${pids[i - 1]}"; then
      tail -3 "$work/together.$i.log"
    else
      echo "failed: ${!i}"
      tail -60 "$work/together.$i.log"
      failed=1
    fi
  done
  return $failed
}

need_build_tools() {
  "$python" -m pip install -q cmake ninja 'pybind11>=3' 'scikit-build-core>=1.0'
}

# need_extras NAME...: what optional dependencies of pgalloc need, without building it again.
need_extras() {
  local wanted
  wanted=$("$python" - "$@" <<'PYTHON'
import sys, tomllib
extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]
for name in sys.argv[1:]:
    for wanted in extras[name]:
        if not wanted.startswith("pgalloc["):
            print(wanted)
PYTHON
  )
  local packages
  mapfile -t packages <<<"$wanted"
  "$python" -m pip install -q "${packages[@]}"
}

# drivers NAME SANITIZERS BUILD_TYPE [TARGET]: the native drivers, into $work/NAME.
drivers() {
  need_build_tools
  cmake -S . -B "$work/$1" -G Ninja -DPGALLOC_PYTHON=OFF -DPGALLOC_DRIVERS=ON \
    -DPGALLOC_SANITIZE="$2" -DCMAKE_BUILD_TYPE="$3" >"$work/cmake.log"
  cmake --build "$work/$1" --target "${4:-all}" >"$work/build.log" || { tail -40 "$work/build.log"; return 1; }
}

# sanitized NAME SANITIZERS BUILD_TYPE: the package alone, into $work/NAME.
sanitized() {
  SKBUILD_CMAKE_DEFINE="PGALLOC_SANITIZE=$2" SKBUILD_CMAKE_BUILD_TYPE=$3 \
    "$python" -m pip install -q --no-deps --target "$work/$1" .
  # Or the job would test nothing.
  nm -D "$work/$1"/pgalloc/_core*.so | grep "__$1_" >/dev/null
}

# pytest_elsewhere PYTHON ARGUMENTS...: from a folder where only an installed pgalloc can be found.
pytest_elsewhere() {
  (cd "$work" && "$1" -m pytest -q -p no:cacheprovider -c "$root/pyproject.toml" --rootdir "$root" \
    --timeout 900 "${@:2}")
}

# Reports that have pgalloc's own code in a stack.
own_reports() {
  cat "$1".* 2>/dev/null | grep -E '/csrc/|_core\.cpython' || true
}

native_tests() {
  local room
  for room in construction placement allocation references reclaim eviction usage discard cache \
    cache_discards cache_snapshots cache_threads guard_decisions \
    hostile_input save restore fork_peers sharing; do
    echo "$root/tests/unit/test_$room.py"
  done
}

# A sanitizer's own memory is not what these measure, and one run of them is enough.
not_sanitized='not takes_no_memory and not development and not enormous'

job_readme_test() {
  rm -rf .venv
  bash -euxc "$(readme_command test)"
}

job_lint() {
  need_build_tools
  need_extras lint bench
  ruff check .
  ruff format --check .
  mypy
  python -m mypy.stubtest pgalloc._core pgalloc.testing --allowlist .ci/stubtest-allowlist
  git ls-files '*.h' '*.cc' | xargs clang-format --dry-run -Werror
  cmake -S . -B "$work/tidy" -G Ninja -DPGALLOC_UNITY=OFF -DPython_EXECUTABLE="$python" \
    -Dpybind11_DIR="$(python -m pybind11 --cmakedir)" >"$work/cmake.log"
  git ls-files 'csrc/*.cc' | xargs -P 2 -n 4 clang-tidy -p "$work/tidy" --quiet \
    --extra-arg=-Wthread-safety 2>"$work/tidy.log" || { tail -40 "$work/tidy.log"; return 1; }
  must_fail clang-tidy --quiet --checks='-*,clang-diagnostic-thread-safety*' \
    --warnings-as-errors='*' --extra-arg=-Wthread-safety .ci/planted/unlocked.cc -- \
    -std=c++20 -Icsrc
}

# The wheel, in every other CPython of this machine.
job_wheels() {
  local found=0 candidate
  for candidate in "$HOME"/.pyenv/versions/3.1[2-9]*/bin/python3; do
    [ -x "$candidate" ] || continue
    found=$((found + 1))
    "$candidate" -VV
    "$candidate" -m venv "$work/venv$found"
    "$work/venv$found/bin/pip" install -q '.[test]'
    pytest_elsewhere "$work/venv$found/bin/python" -n 2 -m 'not slow' \
      "$root"/tests/unit/test_{allocation,references,save,restore,discard,cache,fork,sharing,readme}.py
  done
  echo "other CPythons tested: $found"
}

job_asan() {
  sanitized asan address,undefined Debug
  local preload
  preload="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)"
  local options="exitcode=99:allocator_may_return_null=1:log_path=$work/asan.log"
  export PYTHONPATH=$work/asan UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1

  # shellcheck disable=SC2046
  ASAN_OPTIONS=$options:detect_leaks=0 LD_PRELOAD=$preload \
    pytest_elsewhere "$python" -n 2 -k "$not_sanitized" -m 'not slow' $(native_tests)
  ASAN_OPTIONS=$options:detect_leaks=0 LD_PRELOAD=$preload \
    pytest_elsewhere "$python" -n 2 "$root/tests/unit/test_faults.py" -k 'always or every_call'
  must_fail env ASAN_OPTIONS="$options:detect_leaks=0" LD_PRELOAD="$preload" \
    "$python" .ci/planted/overflow.py

  # CPython and numpy leave memory behind at exit: leaks count where pgalloc is in the stack. Full
  # stacks need the slow unwinder, and Python objects mallocs of their own.
  local leaks="PYTHONMALLOC=malloc LSAN_OPTIONS=exitcode=0 \
    ASAN_OPTIONS=$options:detect_leaks=1:fast_unwind_on_malloc=0 LD_PRELOAD='$preload'"
  drivers asan-drivers address,undefined Debug image_driver
  together "$work/asan-drivers/image_driver --edits 30000 --every-bit" \
    "ASAN_OPTIONS=$options:detect_leaks=0 LD_PRELOAD='$preload' $python stress/sharing.py --seconds 30 &&
      $leaks pytest_elsewhere $python $root/tests/unit/test_discard.py"
  [ -z "$(own_reports "$work/asan.log")" ] || { cat "$work"/asan.log.*; return 1; }
  eval "$leaks $python .ci/planted/leak.py"
  own_reports "$work/asan.log" | grep range_type.cc >/dev/null
  echo "planted leak found"
}

job_tsan() {
  sanitized tsan thread RelWithDebInfo
  drivers tsan-drivers thread RelWithDebInfo
  local preload
  preload=$(g++ -print-file-name=libtsan.so)
  export PYTHONPATH=$work/tsan
  export TSAN_OPTIONS=exitcode=66:log_path=$work/tsan.log

  "$work/tsan-drivers/chunk_map_driver" --rounds 20
  "$work/tsan-drivers/torture" --seconds 120 --operations 6000 --bytes-max 67108864
  # Not: terabytes of address space, which ThreadSanitizer has no room for.
  LD_PRELOAD=$preload pytest_elsewhere "$python" -n 2 -k 'not tib and not hundreds' \
    "$root"/tests/unit/test_{references,reclaim,eviction,usage,discard}.py
  LD_PRELOAD=$preload "$python" stress/torture.py --seconds 15
  LD_PRELOAD=$preload "$python" stress/sharing.py --seconds 30
  if compgen -G "$work/tsan.log*" >/dev/null; then
    cat "$work"/tsan.log*
    return 1
  fi
  must_fail "$work/tsan-drivers/chunk_map_driver" --rounds 5 --plant
  must_fail env LD_PRELOAD="$preload" "$python" .ci/planted/race.py
}

job_valgrind() {
  drivers debug "" RelWithDebInfo
  local check="valgrind -q --fair-sched=yes --error-exitcode=9 --leak-check=full \
    --errors-for-leak-kinds=definite $work/debug"
  local torture="torture --seconds 120 --operations 1000 --bytes-max 16777216"
  together "$check/segment_set_driver --operations 3000 && $check/image_driver --edits 500" \
    "$check/$torture && must_fail $check/$torture --plant dirty"
}

job_stress() {
  drivers release "" Release
  local release=$work/release
  together "$release/segment_set_driver --operations 1000000 &&
      must_fail $release/segment_set_driver --operations 1000000 --plant" \
    "$release/image_driver --edits 200000 --every-bit"
  together "$python stress/sharing.py --seconds 75" \
    "$release/torture --seconds 30 && $python stress/torture.py --seconds 20 --fork &&
      $python stress/snapshots.py --seconds 20"
  local bug planted=()
  for bug in data usage index; do
    planted+=("must_fail $release/image_driver --plant $bug")
  done
  for bug in shared dirty lost epoch; do
    planted+=("must_fail $release/torture --seconds 60 --plant $bug")
  done
  for bug in dirty view; do
    planted+=("must_fail $python stress/torture.py --seconds 60 --plant $bug")
  done
  for bug in page decommit; do
    planted+=("must_fail $python stress/snapshots.py --seconds 60 --plant $bug")
  done
  for bug in lost early; do
    planted+=("must_fail $python stress/sharing.py --seconds 60 --plant $bug")
  done
  planted+=("must_fail env PGALLOC_PLANT=discards $python -m pytest -q tests/stateful/test_discardable.py")
  local i
  for ((i = 0; i < ${#planted[@]}; i += 2)); do
    together "${planted[@]:i:2}"
  done
}

# Against the memory limit of this machine's controller. With --plant what protects is switched off,
# and the program succeeds if the kernel killed it.
job_limits() {
  "$python" stress/limits.py write_through --runs 2
  "$python" stress/limits.py touch
  "$python" stress/limits.py write_through --plant dict
  "$python" stress/limits.py touch --plant guard
  "$root/.venv/bin/pgalloc" demo oom
}

# The same under the other memory controller, in a virtual machine.
job_vm() {
  local vm=("$python" stress/vm_v2.py --cache "$work/vm")
  local limits=("${vm[@]}" --timeout 240 --memory-max none -- python stress/limits.py)
  "${vm[@]}" --timeout 60 --oom -- python -c 'x = bytearray(b"x") * 2**30'
  "${limits[@]}" write_through --times 4 --moment 0.5 -- --copy-mib 16
  "${limits[@]}" touch -- --orders backwards
  "${limits[@]}" touch --plant guard -- --way stride --orders forwards
}

# In a virtual environment of its own, as a newcomer's.
job_readme_demo() {
  git clone -q . "$work/fresh"
  (cd "$work/fresh" && CCACHE_BASEDIR=$PWD bash -euxc "$(readme_command demo)" | tee "$work/demo.log")
  tail -n 1 "$work/demo.log" | grep '^demo: OK'
  "$work/fresh/.venv/bin/pgalloc" doctor
}
