# step NAME COMMAND...   runs it, prints its name and seconds, and its output where it fails.
# steps_done             fails if any step did. Sourced by scripts/check and .ci/run.
failed=()

step() {
  local name=$1 began=$SECONDS output status=0
  shift
  if [[ $1 == --show ]]; then  # output as it comes, for long steps
    shift
    echo "== $name"
    "$@" || status=$?
  else
    output=$("$@" 2>&1) || status=$?
    if ((status)); then printf '%s\n' "$output"; fi
  fi
  if ((status)); then
    failed+=("$name")
    echo "== $name: FAILED after $((SECONDS - began)) s"
  else
    echo "== $name: ok, $((SECONDS - began)) s"
  fi
}

steps_done() {
  if ((${#failed[@]})); then
    echo "== failed: ${failed[*]}"
    exit 1
  fi
}
