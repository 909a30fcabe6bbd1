#!/usr/bin/env bash
# Runs ChatChain amid kills, partitions, full disks and worse, with a judge who knows what was acknowledged.
#
#   scripts/chaos.sh                                    the 3 short episodes that cargo test runs
#   scripts/chaos.sh --first-seed 100 --episodes 60     more of them, and others; totals may be added up
#   scripts/chaos.sh --only kill-all,wipe               some kinds of faults; --help names all
#
# Builds what it runs. Exits with 1 if a promise was broken; the command that repeats that episode is printed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cargo build --quiet --locked --bin chatchain
program=$(cargo test --locked --test chaos --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"name":"chaos".*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
if [[ -z $program ]]; then
    cargo test --locked --test chaos --no-run # says why
    echo "chaos: the program was built, but cargo does not say where it is" >&2
    exit 1
fi
exec "$program" "$@"
