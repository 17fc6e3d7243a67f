#!/usr/bin/env python3
"""Prints THIRD-PARTY.md: every crate in the program for a target, with its licence and the texts that must go along.

    packaging/notices.py TARGET

Fails on a licence that nobody has looked at, and on a crate that says nothing of its licence.
"""
import json
import pathlib
import re
import subprocess
import sys

# Licences under which code may be part of an Apache-2.0 program that is passed on with these notices.
ALLOWED = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0",
    "CDLA-Permissive-2.0", "ISC", "MIT", "MIT-0", "Unicode-3.0", "Unlicense", "Zlib", "BSL-1.0",
}
TEXT = re.compile(r"^(licen[cs]e|copying|copyright|notice|unlicense)", re.IGNORECASE)


def acceptable(expression):
    """Tells whether an SPDX expression can be met; `/` is an old spelling of OR."""
    words = re.findall(r"[()]|[^()\s]+(?: WITH [^()\s]+)?", expression.replace("/", " OR "))

    def any_of():
        met = all_of()
        while words and words[0] == "OR":
            words.pop(0)
            met = all_of() or met
        return met

    def all_of():
        met = one()
        while words and words[0] == "AND":
            words.pop(0)
            met = one() and met
        return met

    def one():
        word = words.pop(0)
        if word != "(":
            return word in ALLOWED
        met = any_of()
        return words.pop(0) == ")" and met

    return any_of() and not words


def cargo(*arguments):
    return subprocess.run(["cargo", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def in_the_program(target):
    """Names and versions of what is linked, without what only builds it."""
    lines = cargo("tree", "--locked", "--edges", "normal", "--prefix", "none", "--target", target,
                  "--format", "{p}").splitlines()
    return {tuple(line.split(" ")[:2]) for line in lines if line}


def texts(folder):
    """Licence texts of a crate and of the C code within it, by path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and TEXT.match(path.name) and len(parts) <= 2 and path.suffix not in (".rs", ".py", ".sh"):
            found["/".join(parts)] = path.read_text(errors="replace").strip()
    return found


def main():
    target = sys.argv[1]
    linked = in_the_program(target)
    packages = json.loads(cargo("metadata", "--locked", "--format-version", "1", "--filter-platform", target))
    packages = sorted(packages["packages"], key=lambda package: (package["name"], package["version"]))
    packages = [package for package in packages
                if (package["name"], "v" + package["version"]) in linked and package["name"] != "walvault"]
    if len(packages) < 20:
        sys.exit(f"notices.py: only {len(packages)} crates are linked for {target}; that cannot be")
    numbers, rows, failed = {}, [], []
    for package in packages:
        name = f"{package['name']} {package['version']}"
        expression = package["license"]
        if not expression or not acceptable(expression):
            failed.append(f"{name}: {expression or 'no licence'}")
            continue
        folder = pathlib.Path(package["manifest_path"]).parent
        own = sorted({numbers.setdefault(text, len(numbers) + 1) for text in texts(folder).values()})
        # Whoever publishes no text is named, and the expression says which common text applies.
        texts_of = ", ".join(map(str, own)) or "by " + (", ".join(package["authors"]) or "its authors")
        rows.append(f"| {name} | {expression.replace('|', '/')} | {package['repository'] or ''} | {texts_of} |")
    if failed:
        sys.exit("notices.py: look at these licences, then add them to ALLOWED or drop the crate:\n" + "\n".join(failed))

    print("# Third-party notices\n")
    print(f"walvault for {target} contains the crates below, the Rust standard library (MIT OR Apache-2.0, "
          "The Rust Project Developers)")
    if "musl" in target:
        print("and musl (MIT, Copyright © 2005-2020 Rich Felker, et al.).")
    else:
        print("and parts of GCC's runtime library (GPL-3.0 with the runtime library exception).")
    print("\n| crate | licence | source | texts |\n|---|---|---|---|")
    print("\n".join(rows))
    for text, number in numbers.items():
        print(f"\n## Text {number}\n")
        print("\n".join("    " + line.rstrip() if line.strip() else "" for line in text.splitlines()))


if __name__ == "__main__":
    main()
