# Sourced by scripts/check and .ci/run.
#   step NAME COMMAND...          run it; print name and seconds, and the output if it fails
#   step NAME --show COMMAND...   the same, with the output as it comes
#   steps_done                    fail if a step has failed
failed=()

step() {
  local name=$1 began=$SECONDS output status=0
  shift
  if [[ $1 == --show ]]; then
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
