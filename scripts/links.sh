#!/usr/bin/env bash
# Measures exchanges over bad links: slow, far, lossy and cut ones, 36 in all. Prints a table with a row per link, and the
# goals that the row misses in its last column. tests/it/cluster/links.rs says what the goals are.
#
#   scripts/links.sh        each link is filled for 30 s; takes about half an hour
#   scripts/links.sh 10     each link is filled for 10 s, or for six round trips if they take longer
#
# Exits with 1 if a row misses a goal, and with 2 if not every link was measured.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export CHATCHAIN_LINKS_SECONDS=${1:-30}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test --quiet --release --locked --test it --no-run || exit 2

echo "| rate | round trip | loss | cut after | plain TCP | share of it | messages | bytes factor | quiet after" \
    "| median/slowest send: alone, full, empty | slowest delivery to: full, empty | misses |"
echo "|---|---|---|---|---|---|---|---|---|---|---|---|"
cargo test --quiet --release --locked --test it -- --ignored --exact cluster::links::all_links_are_used 2>&1 |
    tee "$log" | sed -nu 's/^measured: link: \(.*\)$/| \1 |/p'
code=${PIPESTATUS[0]}

links=36 rows=$(grep -c '^measured: link: ' "$log")
if ((rows != links)); then
    cat "$log" >&2
    echo "links: $rows of $links links were measured" >&2
    exit 2
fi
((code == 0)) || exit 1
