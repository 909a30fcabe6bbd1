#!/usr/bin/env bash
# Plants one mistake after the other into the program, and runs the simulation and the crash images on it. The tests must
# find every mistake: a test that cannot fail proves nothing.
#
#   scripts/faults.sh                 all mistakes
#   scripts/faults.sh NAME...         these mistakes; src/fault.rs has the names
#
# Builds the program with its own features first. Exits with 1 if a mistake is not found.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

names=("$@")
if ((${#names[@]} == 0)); then
    mapfile -t names < <(sed -n 's/^        ("\([a-z-]*\)", Fault::.*/\1/p' src/fault.rs)
fi
program=$(cargo test --quiet --locked --features planted-faults --test sim --no-run --message-format=json |
    sed -n 's/.*"name":"sim".*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
if [[ -z $program ]]; then
    echo "faults: the simulation does not build" >&2
    exit 1
fi

# The worlds first: they find most mistakes within seconds. A set of tests that has not failed after `limit` seconds is stopped.
tests=('worlds::' 'scripts::' 'crash_images::')
limit=120

found=0 missed=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for name in "${names[@]}"; do
    began=$SECONDS by=
    for test in "${tests[@]}"; do
        CHATCHAIN_FAULT=$name CHATCHAIN_SIM_SEEDS=300 timeout "$limit" "$program" "$test" >"$log" 2>&1
        code=$?
        if ((code == 101)); then
            by=$(grep -m 1 -E '^(thread|.*: seed [0-9]+|violation)' "$log" | cut -c 1-160)
            by="$test ${by:-(see its output)}"
            break
        elif ((code != 0)); then
            echo "faults: $name: $test ended with $code, which is neither success nor a failed test" >&2
        fi
    done
    if [[ -n $by ]]; then
        echo "faults: $name is found after $((SECONDS - began)) s by $by"
        found=$((found + 1))
    else
        echo "faults: $name is NOT found in $((SECONDS - began)) s" >&2
        missed=$((missed + 1))
    fi
done
echo "$found passed, $missed failed"
((missed == 0))
