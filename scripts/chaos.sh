#!/usr/bin/env bash
# Runs ChatChain under kills, partitions, full disks and worse faults, and checks that every acknowledged message survives.
#
#   scripts/chaos.sh                                    the 3 short episodes that cargo test runs
#   scripts/chaos.sh --first-seed 100 --episodes 60     more episodes, with other seeds; totals may be added up
#   scripts/chaos.sh --only kill-all,wipe               some kinds of faults; --help lists all kinds
#
# Builds the program first. Exits with 1 if a promise was broken, and prints the command that repeats that episode.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cargo build --quiet --locked --bin chatchain
program=$(cargo test --locked --test chaos --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"name":"chaos".*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
if [[ -z $program ]]; then
    cargo test --locked --test chaos --no-run # prints why
    echo "chaos: the program was built, but cargo does not name its path" >&2
    exit 1
fi
exec "$program" "$@"
