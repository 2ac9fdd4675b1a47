# The hours-long forms of the jobs, for a night's run: `bash .ci/run long`. Sourced by jobs.sh. Seeds are
# random, and printed.

# with_seed COMMAND...: with --seed and a random number.
with_seed() {
  local seed=$((RANDOM << 15 | RANDOM))
  echo "+ $* --seed $seed"
  "$@" --seed "$seed"
}

# unhurried ARGUMENTS...: pytest, for tests that may each take hours.
unhurried() {
  "$python" -m pytest -p no:cacheprovider --timeout 36000 -o faulthandler_timeout=36000 "$@"
}

# Five thousand million operations in all, a core's work of seven hours.
segment_set() {
  local i
  for ((i = 1; i <= 500; ++i)); do
    with_seed "$work/drivers/segment_set_driver" --operations 10000000
    echo "round $i of 500, $SECONDS s"
  done
}

job_night_segment_set_1() {
  segment_set
}

job_night_segment_set_2() {
  segment_set
}

job_night_state_machines() {
  HYPOTHESIS_PROFILE=long unhurried tests/stateful
}

job_night_torture() {
  with_seed "$work/drivers/torture" --seconds 3600 --bytes-max 1073741824
}

job_night_torture_api() {
  with_seed "$python" stress/torture.py --seconds 3600 --fork
}

job_night_sharing() {
  with_seed "$python" stress/sharing.py --seconds 3600
}

job_night_snapshots() {
  with_seed "$python" stress/snapshots.py --seconds 3600
}

job_night_limits() {
  with_seed "$python" stress/limits.py write_through --runs 50 --read-mib 200
  with_seed "$python" stress/limits.py lowered --runs 30
}

job_night_vm() {
  local seed=$((RANDOM << 15 | RANDOM))
  echo "seed $seed"
  "$python" stress/vm_v2.py --cache "$work/vm" --timeout 16000 --memory-max none -- \
    python stress/limits.py write_through --runs 25 --moment 0.5 --seed "$seed" -- --copy-mib 16
}

job_night_other_pythons() {
  local candidate found
  mapfile -t found < <(other_pythons)
  for candidate in "${found[@]}"; do
    in_python "$candidate" "$root/tests"
  done
  echo "other CPythons tested: ${#found[@]}"
}

job_night_save_killed() {
  PGALLOC_KILLS=1000 unhurried tests/unit/test_save_killed.py
}

job_night_hostile_images() {
  PGALLOC_BIT_STEP=1 PGALLOC_EDITS=100000 unhurried tests/unit/test_hostile_images.py
}
