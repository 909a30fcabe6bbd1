#!/usr/bin/env python3
"""Checks that ChatChain may be shipped under MIT: the license of every dependency, on every platform, allows it.

An expression passes if the licenses in ALLOWED satisfy it. `A OR B` needs one of the two, `A AND B` needs both, `A+` ("or
any later version") needs A. `A WITH exception` must be in ALLOWED as a whole.

    licences.py              checks what `cargo metadata` says; prints every crate that fails, then exits 1
    licences.py --self-test  checks this checker
"""

import json
import pathlib
import re
import subprocess
import sys

ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",  # copyleft per file: binds changes to those files only, and we change none
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
}

TOKEN = re.compile(r"\s*([()]|[A-Za-z0-9.+:-]+)")


class Malformed(Exception):
    """Not an SPDX expression."""


def tokens(expression):
    # `MIT/Apache-2.0` is how Cargo wrote OR before it knew SPDX.
    text = expression.replace("/", " OR ").strip()
    found, at = [], 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if not match:
            raise Malformed(f"cannot read {text[at:]!r}")
        found.append(match[1])
        at = match.end()
    return found


def passes(expression):
    """Whether the allowed licenses are enough to satisfy the expression."""
    rest = tokens(expression)

    def peek():
        return rest[0] if rest else None

    def name(what):
        if peek() in (None, "(", ")", "AND", "OR", "WITH"):
            raise Malformed(f"{what} expected, found {peek() or 'the end'}")
        return rest.pop(0)

    def one():
        if peek() == "(":
            rest.pop(0)
            inside = either()
            if peek() != ")":
                raise Malformed("closing parenthesis expected")
            rest.pop(0)
            return inside
        license = name("a license").removesuffix("+")
        if peek() == "WITH":
            rest.pop(0)
            license += " WITH " + name("an exception")
        return license in ALLOWED

    # `&` and `|` on purpose: both sides are always parsed.
    def both():
        good = one()
        while peek() == "AND":
            rest.pop(0)
            good &= one()
        return good

    def either():
        good = both()
        while peek() == "OR":
            rest.pop(0)
            good |= both()
        return good

    good = either()
    if rest:
        raise Malformed(f"unexpected {rest[0]!r}")
    return good


def complaint(package):
    """Why this package may not be used, or None."""
    license = package.get("license")
    if not license:
        return f"names no license (license file: {package.get('license_file')})"
    try:
        return None if passes(license) else f"{license} is not allowed"
    except Malformed as why:
        return f"{license!r} is not an SPDX expression: {why}"


def failures(packages):
    found = ((p, complaint(p)) for p in sorted(packages, key=lambda p: (p["name"], p["version"])))
    return [f"{p['name']} {p['version']}: {why}" for p, why in found if why]


def metadata():
    top = pathlib.Path(__file__).resolve().parent.parent
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--manifest-path", str(top / "Cargo.toml")]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit("licenses: cargo metadata failed")
    return json.loads(done.stdout)["packages"]


def self_test():
    good = [
        "MIT",
        "MIT/Apache-2.0",
        "MPL-2.0+",
        "GPL-3.0-only OR MIT",
        "(MIT OR GPL-3.0-only) AND Unicode-3.0",
        "Apache-2.0 WITH LLVM-exception",
        "GPL-2.0-only AND ISC OR Zlib",  # AND binds tighter
        "((MIT))",
    ]
    bad = [
        "GPL-3.0-only",
        "MIT AND GPL-3.0-only",
        "GPL-3.0-only AND MIT OR AGPL-3.0-only",
        "MIT AND (GPL-3.0-only OR AGPL-3.0-only)",
        "GPL-2.0-only WITH Classpath-exception-2.0",
        "MIT WITH Commons-Clause",
        "mitten",
    ]
    malformed = ["", "MIT OR", "MIT Apache-2.0", "(MIT", "MIT)", "AND MIT", "MIT WITH", "MIT, Zlib", "MIT WITH (X)"]
    for expression in good:
        assert passes(expression), expression
    for expression in bad:
        assert not passes(expression), expression
    for expression in malformed:
        try:
            passes(expression)
        except Malformed:
            continue
        raise AssertionError(f"{expression!r} was not noticed")
    crates = [{"name": "b", "version": "1.0.0", "license": license} for license in ["", "MIT", *bad[:1], *malformed[1:2]]]
    assert len(failures(crates)) == 3, failures(crates)


def main():
    if sys.argv[1:] == ["--self-test"]:
        self_test()
        return
    if sys.argv[1:]:
        sys.exit(__doc__)
    packages = metadata()
    failed = failures(packages)
    if failed:
        print("\n".join(failed))
        sys.exit(1)
    print(f"licenses: {len(packages)} crates may be used")


if __name__ == "__main__":
    main()
