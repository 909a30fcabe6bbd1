#!/usr/bin/env bash
# Runs every check that a change must pass; CI runs the same. Works from any directory.
#
#   scripts/check.sh               all checks
#   scripts/check.sh --tests-done  all checks but the tests, for a caller that has just run them
#
# Stops at the first step that fails and exits with 1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tests=here
case "${1-}" in
'') ;;
--tests-done) tests=elsewhere ;;
*)
    echo "usage: scripts/check.sh [--tests-done]" >&2
    exit 2
    ;;
esac

# step NAME COMMAND...: runs the command, and prints its result and its duration.
step() {
    local name=$1 began=$SECONDS
    shift
    echo "check: $name: $*"
    if ! "$@"; then
        echo "check: $name FAILED after $((SECONDS - began)) s" >&2
        exit 1
    fi
    echo "check: $name ok, $((SECONDS - began)) s"
}

step format cargo fmt --check
step lints cargo clippy --quiet --locked --all-targets -- -D warnings
if [[ $tests == here ]]; then
    step tests cargo test --locked
else
    echo "check: the caller has run the tests"
fi
# Private items are documented too, so links to them are not broken.
step docs env RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" cargo doc --quiet --locked --no-deps --document-private-items
step licence-checker python3 scripts/licences.py --self-test
step licences python3 scripts/licences.py
echo "check: all ok, $SECONDS s"
