# The jobs of plan.py: job_NAME does one, or fails. $root is the checkout, $work a folder that goes when
# CI ends, $TMPDIR and $CI_LOGS below it are for this job alone; scheduler.py sets them. night.sh has the
# hours-long ones.

# What README's command made, and nothing else, so that no tool hides what a user would miss.
python=$root/.venv/bin/python

# Everything else that jobs need is in a virtual environment of its own, and on the path if they ask.
use_tools() {
  export PATH=$work/tools/bin:$PATH
}

# The command under a marker in the README: what is promised there is what runs here.
readme_command() {
  sed -n "/<!-- command: $1 -->/,/^\`\`\`\$/p" README.md | sed '1,2d;$d'
}

# must_fail STATUS PATTERN COMMAND...: a planted bug has to be found, by this exit status and with output
# that matches; any other failure finds nothing.
must_fail() {
  local log status=0
  log=$(mktemp)
  "${@:3}" >"$log" 2>&1 || status=$?
  if [ "$status" != "$1" ] || ! grep -E "$2" "$log" >/dev/null; then
    echo "planted bug NOT found (exit $status, not $1 with '$2'): ${*:3}"
    tail -20 "$log"
    return 1
  fi
  echo "planted bug found: ${*:3}"
}

# build NAME SANITIZERS BUILD_TYPE TARGET...: into $work/NAME; _core is the extension module.
build() {
  use_tools
  # Only release builds are made more than once.
  [ "$3" = Release ] || unset CMAKE_CXX_COMPILER_LAUNCHER
  cmake -S . -B "$work/$1" -G Ninja -DPGALLOC_DRIVERS=ON -DPGALLOC_NATIVE_TESTS=ON -DPGALLOC_SANITIZE="$2" \
    -DCMAKE_BUILD_TYPE="$3" -DPython_EXECUTABLE="$python" \
    -Dpybind11_DIR="$(pybind11-config --cmakedir)" >"$CI_LOGS/cmake.log"
  cmake --build "$work/$1" --parallel "$CI_WEIGHT" --target "${@:4}" >"$CI_LOGS/build.log"
}

# package NAME SANITIZER: the package with the extension that was built, in $work/NAME/site.
package() {
  mkdir "$work/$1/site"
  git ls-files -z pgalloc | xargs -0 cp --parents -t "$work/$1/site"
  cp "$work/$1"/_core*.so "$work/$1/site/pgalloc/"
  # Or the jobs would test nothing.
  nm -D "$work/$1"/site/pgalloc/_core*.so | grep "__$2_" >/dev/null
}

# pytest_elsewhere PYTHON ARGUMENTS...: from a folder where only an installed pgalloc can be found.
pytest_elsewhere() {
  (cd "$TMPDIR" && "$1" -m pytest -q -p no:cacheprovider -c "$root/pyproject.toml" --rootdir "$root" \
    --timeout 900 "${@:2}")
}

# rooms NAME...: their tests.
rooms() {
  printf "$root/tests/unit/test_%s.py\n" "$@"
}

# --- README, tools, builds ----------------------------------------------------------------------------

job_readme_test() {
  rm -rf .venv
  bash -euxc "$(readme_command test)"
}

# beside_readme FOLDER EXTRA...: a virtual environment with these extras, which sees what README's command
# installed, and is not seen by that.
beside_readme() {
  "$python" -m venv "$1"
  "$1/bin/python" - "$root/.venv" <<'PYTHON'
import pathlib, sys, sysconfig
there = sysconfig.get_path("purelib", vars={"base": sys.argv[1]})
pathlib.Path(sysconfig.get_path("purelib"), "readme.pth").write_text(
    f"import site; site.addsitedir({there!r})\n"
)
PYTHON
  # What optional dependencies of pgalloc need, without building it again.
  local extras
  extras=$("$python" - "${@:2}" <<'PYTHON'
import sys, tomllib
extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]
for name in sys.argv[1:]:
    for wanted in extras[name]:
        if not wanted.startswith("pgalloc["):
            print(wanted)
PYTHON
  )
  mapfile -t extras <<<"$extras"
  "$1/bin/python" -m pip install -q "${extras[@]}"
}

job_tools() {
  beside_readme "$work/tools" lint bench
  "$work/tools/bin/python" -m pip install -q cmake ninja 'pybind11>=3' py-spy
}

# As users get the core.
job_drivers() {
  build drivers "" Release segment_set_driver image_driver torture
}

# For valgrind: optimized across files, a driver's own operator delete is mixed up with malloc's.
job_drivers_debug() {
  build debug "" RelWithDebInfo segment_set_driver image_driver torture core_driver
}

job_asan_build() {
  build asan address,undefined Debug _core image_driver native_tests
  package asan asan
}

job_tsan_build() {
  build tsan thread RelWithDebInfo _core chunk_map_driver torture native_tests
  package tsan tsan
}

# --- What is written ----------------------------------------------------------------------------------

job_ci_self() {
  use_tools
  "$python" -m pytest -q -p no:cacheprovider -o pythonpath=.ci .ci/selftest.py
}

job_lint() {
  use_tools
  ruff check .
  ruff format --check .
  mypy
  MYPYPATH=.ci mypy .ci/*.py
  "$work/tools/bin/python" -m mypy.stubtest pgalloc._core pgalloc.testing \
    --allowlist .ci/stubtest-allowlist
  git ls-files '*.h' '*.cc' | xargs clang-format --dry-run -Werror
}

job_tidy() {
  use_tools
  cmake -S . -B "$work/tidy" -G Ninja -DPGALLOC_UNITY=OFF -DPython_EXECUTABLE="$python" \
    -Dpybind11_DIR="$(pybind11-config --cmakedir)" >"$CI_LOGS/cmake.log"
  git ls-files 'csrc/*.cc' | xargs -P "$CI_WEIGHT" -n 4 clang-tidy -p "$work/tidy" --quiet \
    --extra-arg=-Wthread-safety 2>"$CI_LOGS/tidy.log"
  must_fail 1 thread-safety-analysis clang-tidy --quiet --extra-arg=-Wthread-safety \
    .ci/planted/unlocked.cc -- -std=c++20 -Icsrc
}

# --- Elsewhere ----------------------------------------------------------------------------------------

# The other CPythons of this machine.
other_pythons() {
  compgen -G "$HOME/.pyenv/versions/3.1[2-9]*/bin/python3" | sort -V || true
}

# in_python PYTHON ARGUMENTS...: the wheel in a virtual environment of that Python, and these tests.
in_python() {
  local here
  here=$(mktemp -d)
  "$1" -VV
  # A copy: a build in the checkout writes into it.
  mkdir "$here/source"
  git ls-files -z | xargs -0 cp --parents -t "$here/source"
  "$1" -m venv "$here/venv"
  CCACHE_BASEDIR=$here/source "$here/venv/bin/pip" install -q "$here/source[test]"
  pytest_elsewhere "$here/venv/bin/python" -n 2 "${@:2}"
}

# One of them, in turn by the day; the night has them all.
job_other_python() {
  local found
  mapfile -t found < <(other_pythons)
  if [ "${#found[@]}" = 0 ]; then
    echo "this machine has no other CPython"
    return
  fi
  # shellcheck disable=SC2046
  in_python "${found[$(date +%s) / 86400 % ${#found[@]}]}" -m 'not slow' \
    $(rooms allocation references save restore discard cache fork sharing readme)
}

# With the real libraries, in a virtual environment of their own: nothing else may need them.
job_libraries() {
  beside_readme "$work/libraries" libraries
  "$work/libraries/bin/python" -m pytest -q -p no:cacheprovider tests/libraries
}

# Against the memory limit of this machine's controller. With --plant what protects is switched off,
# and the program succeeds if the kernel killed it.
job_limits() {
  "$python" stress/limits.py write_through --runs 2
  "$python" stress/limits.py touch --read-mib 200
  "$python" stress/limits.py lowered --runs 3
  "$python" stress/limits.py peer
  "$python" stress/limits.py kept
  "$python" stress/limits.py write_through --plant dict
  "$python" stress/limits.py touch --plant guard
  "$python" stress/limits.py lowered --plant guard
  "$python" stress/limits.py peer --plant guard
  "$python" stress/limits.py kept --plant headroom
  "$root/.venv/bin/pgalloc" demo oom
}

# With huge pages for memfds, where this machine lets us switch them on; the job says if it does not.
job_huge_pages() {
  local huge=("$python" stress/huge_pages.py -- "$python")
  "${huge[@]}" -m pytest -q -p no:cacheprovider tests/huge
  # shellcheck disable=SC2046
  "${huge[@]}" -m pytest -q -p no:cacheprovider -n 2 $(rooms huge_pages allocation references \
    reclaim usage discard cache arrays shared_list save restore)
  # What the model, the torture and failing calls find with small pages, with huge ones.
  "${huge[@]}" -m pytest -q -p no:cacheprovider -n 2 tests/stateful -k huge
  must_fail 1 AssertionError env PGALLOC_PLANT=huge "$python" -m pytest -q \
    tests/stateful/test_memory_file.py -k huge
  PGALLOC_SCENARIOS=huge,memfd PGALLOC_FAULTS=4 "${huge[@]}" -m pytest -q -p no:cacheprovider -n 2 \
    tests/unit/test_faults.py -k failing
  "$python" stress/huge_pages.py -- "$work/drivers/torture" --seconds 20
  "${huge[@]}" stress/torture.py --seconds 15 --fork
  "${huge[@]}" stress/fragmentation.py --seconds 40
  "${huge[@]}" stress/limits.py write_through --runs 3
  "${huge[@]}" stress/limits.py touch -- --huge
  must_fail 1 FAILED "$python" stress/fragmentation.py --plant
}

# The same under the other memory controller, in a virtual machine.
job_vm() {
  local vm=("$python" stress/vm_v2.py --cache "$work/vm")
  local machine=("${vm[@]}" --timeout 240 --memory-max none)
  local limits=("${machine[@]}" -- python stress/limits.py)
  "${vm[@]}" --timeout 60 --oom -- python -c 'x = bytearray(b"x") * 2**30'
  "${limits[@]}" write_through --times 4 --moment 0.5 -- --copy-mib 16
  "${limits[@]}" touch -- --orders backwards
  "${machine[@]}" --disk-mib 200 -- python stress/limits.py kept --read-file /dev/loop0
  "${limits[@]}" touch --plant guard -- --way stride --orders forwards
}

# In a virtual environment of its own, as a newcomer's.
job_readme_demo() {
  git clone -q . "$TMPDIR/fresh"
  cd "$TMPDIR/fresh"
  CCACHE_BASEDIR=$PWD bash -euxc "$(readme_command demo)" | tee "$CI_LOGS/demo.log"
  tail -n 1 "$CI_LOGS/demo.log" | grep '^demo: OK'
  .venv/bin/pgalloc doctor
}

# --- Sanitizers ---------------------------------------------------------------------------------------

# A sanitizer's own memory is not what these measure, and one run of them is enough.
not_sanitized='not takes_no_memory and not enormous'

export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1

# asan_settings OPTIONS: for what runs with LD_PRELOAD=$preload.
asan_settings() {
  preload="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)"
  export PYTHONPATH=$work/asan/site
  export ASAN_OPTIONS=exitcode=99:allocator_may_return_null=1:log_path=$CI_LOGS/asan:$1
  ASAN_OPTIONS=detect_leaks=0 sanitized_is_found asan
}

# Reports that have pgalloc's own code in a stack.
own_reports() {
  cat "$CI_LOGS"/asan.* 2>/dev/null | grep -E '/csrc/|_core\.cpython' || true
}

asan_clean() {
  [ -z "$(own_reports)" ] || { cat "$CI_LOGS"/asan.*; return 1; }
}

# The extension that Python finds is the one that was built with the sanitizer.
sanitized_is_found() {
  LD_PRELOAD=$preload "$python" -P - "$work/$1/site" <<'PYTHON'
import sys
from pgalloc import _core
assert _core.__file__.startswith(sys.argv[1]), _core.__file__
PYTHON
}

# asan_tests NAME...: of these rooms.
asan_tests() {
  asan_settings detect_leaks=0
  # shellcheck disable=SC2046
  LD_PRELOAD=$preload pytest_elsewhere "$python" -k "$not_sanitized" -m 'not slow' $(rooms "$@")
  asan_clean
}

job_asan_rooms() {
  asan_tests construction placement allocation references reclaim eviction usage discard \
    cache cache_discards cache_snapshots cache_threads guard_decisions save restore fork_peers sharing
}

# What callers do wrong, in Python's development mode: its allocators check their blocks, and that they
# are called with the GIL, and an error that is set where a call succeeded is noticed.
job_asan_hostile() {
  export PYTHONDEVMODE=1
  asan_tests hostile_input hostile_callbacks hostile_hooks
  must_fail 134 "Debug memory block" env LD_PRELOAD="$preload" "$python" .ci/planted/block.py
}

job_asan_faults() {
  asan_settings detect_leaks=0
  PGALLOC_FAULTS=3 LD_PRELOAD=$preload pytest_elsewhere "$python" "$root/tests/unit/test_faults.py" \
    -k failing
  asan_clean
}

job_asan_sharing() {
  asan_settings detect_leaks=0
  LD_PRELOAD=$preload "$python" stress/sharing.py --seconds 20
  LD_PRELOAD=$preload "$python" stress/sharing.py --seconds 15 --trouble 0.1
  asan_clean
}

job_asan_native() {
  ASAN_OPTIONS=allocator_may_return_null=1 "$work/asan/native_tests"
}

job_asan_images() {
  "$work/asan/image_driver" --edits 15000 --every-bit
}

# CPython and numpy leave memory behind at exit: leaks count where pgalloc is in the stack. Full
# stacks need the slow unwinder, and Python objects mallocs of their own.
job_asan_leaks() {
  asan_settings detect_leaks=0
  must_fail 99 heap-buffer-overflow env LD_PRELOAD="$preload" ASAN_OPTIONS="$ASAN_OPTIONS:log_path=stderr" \
    "$python" .ci/planted/overflow.py
  asan_settings detect_leaks=1:fast_unwind_on_malloc=0
  export PYTHONMALLOC=malloc LSAN_OPTIONS=exitcode=0
  LD_PRELOAD=$preload pytest_elsewhere "$python" "$root/tests/unit/test_discard.py"
  asan_clean
  LD_PRELOAD=$preload "$python" .ci/planted/leak.py
  own_reports | grep range_type.cc >/dev/null
  echo "planted leak found"
}

tsan_settings() {
  preload=$(g++ -print-file-name=libtsan.so)
  # A forked child's link has a thread of its own.
  export PYTHONPATH=$work/tsan/site TSAN_OPTIONS=exitcode=66:die_after_fork=0:log_path=$CI_LOGS/tsan:suppressions=$root/.ci/tsan-suppressions
  sanitized_is_found tsan
}

# No report, of pgalloc's or anything else's.
tsan_clean() {
  if compgen -G "$CI_LOGS/tsan.*" >/dev/null; then
    cat "$CI_LOGS"/tsan.*
    return 1
  fi
}

job_tsan_rooms() {
  tsan_settings
  # Not: terabytes of address space, which ThreadSanitizer has no room for.
  # shellcheck disable=SC2046
  LD_PRELOAD=$preload pytest_elsewhere "$python" -k 'not tib and not hundreds' \
    $(rooms references reclaim eviction usage discard)
  tsan_clean
}

job_tsan_native() {
  TSAN_OPTIONS=exitcode=66:allocator_may_return_null=1:die_after_fork=0 "$work/tsan/native_tests"
}

job_tsan_torture() {
  tsan_settings
  "$work/tsan/chunk_map_driver" --rounds 20
  "$work/tsan/torture" --seconds 240 --operations 200000 --bytes-max 67108864
  tsan_clean
  TSAN_OPTIONS=exitcode=66 must_fail 66 "data race" "$work/tsan/chunk_map_driver" --rounds 5 --plant
}

job_tsan_api() {
  tsan_settings
  LD_PRELOAD=$preload "$python" stress/torture.py --seconds 10
  LD_PRELOAD=$preload "$python" stress/sharing.py --seconds 15
  LD_PRELOAD=$preload "$python" stress/sharing.py --seconds 15 --trouble 0.1
  tsan_clean
  TSAN_OPTIONS=exitcode=66 must_fail 66 "data race" env LD_PRELOAD="$preload" "$python" \
    .ci/planted/race.py
}

# --- Valgrind -----------------------------------------------------------------------------------------

# checked DRIVER ARGUMENTS...
checked() {
  valgrind -q --fair-sched=yes --error-exitcode=9 --leak-check=full \
    --errors-for-leak-kinds=definite "$work/debug/$1" "${@:2}"
}

job_valgrind_sets() {
  checked segment_set_driver --operations 20000
  checked image_driver --edits 3000
}

job_valgrind_torture() {
  checked torture --seconds 240 --operations 10000 --bytes-max 16777216
  must_fail 1 FAILED checked torture --seconds 120 --operations 10000 --bytes-max 16777216 --plant dirty
}

# --- Long forms of what the suite samples --------------------------------------------------------------

job_state_machines() {
  HYPOTHESIS_PROFILE=ci "$python" -m pytest -q -p no:cacheprovider tests/stateful
}

job_faults() {
  PGALLOC_FAULTS=all "$python" -m pytest -q -p no:cacheprovider tests/unit/test_faults.py -k failing
}

# --- Stress, and the bugs that it must find -----------------------------------------------------------

job_stress_sets() {
  "$work/drivers/segment_set_driver" --operations 10000000
  must_fail 1 FAILED "$work/drivers/segment_set_driver" --operations 1000000 --plant
}

job_stress_images() {
  "$work/drivers/image_driver" --edits 200000 --every-bit
}

job_stress_torture() {
  "$work/drivers/torture" --seconds 20
  "$python" stress/torture.py --seconds 15 --fork
}

job_stress_sharing() {
  "$python" stress/sharing.py --seconds 10
  "$python" stress/sharing.py --seconds 15 --trouble 0.2
  # More than five hundred deaths.
  "$python" stress/sharing.py --seconds 40 --start-method fork --kill-every 0.06
  "$python" stress/stalled.py gil --seconds 5
  "$python" stress/stalled.py stop --seconds 6 --timeout 2
  "$python" stress/forks.py --forks 500
  "$python" stress/interrupted.py --interrupts 50
}

job_stress_snapshots() {
  "$python" stress/snapshots.py --seconds 20
}

job_planted_images() {
  local bug
  for bug in data usage index; do
    must_fail 1 FAILED "$work/drivers/image_driver" --plant $bug
  done
}

job_planted_torture() {
  local bug
  for bug in shared dirty lost epoch; do
    must_fail 1 FAILED "$work/drivers/torture" --seconds 60 --plant $bug
  done
}

job_planted_api() {
  local bug
  for bug in dirty view; do
    must_fail 1 FAILED "$python" stress/torture.py --seconds 60 --plant $bug
  done
  for bug in page decommit; do
    must_fail 1 FAILED "$python" stress/snapshots.py --seconds 60 --plant $bug
  done
}

job_planted_sharing() {
  local bug
  for bug in lost early; do
    must_fail 1 FAILED "$python" stress/sharing.py --seconds 60 --plant $bug
  done
  must_fail 1 FAILED "$python" stress/stalled.py stop --seconds 2 --plant early
  must_fail 1 FAILED "$python" stress/forks.py --plant fork
}

job_planted_discards() {
  must_fail 1 AssertionError env PGALLOC_PLANT=discards "$python" -m pytest -q tests/stateful/test_discardable.py
}

# The faults of stress/mutation/named.toml: tests/native has to find each.
job_planted_mutants() {
  use_tools
  rm -rf build/mutants_named  # an earlier run had other tools
  "$work/tools/bin/python" stress/mutants.py --named --jobs "$CI_WEIGHT"
}

source .ci/night.sh
