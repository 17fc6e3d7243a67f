#!/usr/bin/env bash
# Makes target/dist/walvault-<version>-<target>.tar.gz, one for each target that can be had, and SHA256SUMS beside them.
#
#   packaging/dist.sh [TARGET...]      without targets: x86-64, and arm64 where this machine can build it
#
# The same commit gives the same archive, byte for byte: times are the commit's (or $SOURCE_DATE_EPOCH), owners are
# numbers, paths of this machine are taken out of the program.
set -euo pipefail
umask 022
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
export LC_ALL=C TZ=UTC

build=${CARGO_TARGET_DIR:-target}
out=$build/dist
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n1)
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 315532800)}

say() {
    printf '%s\n' "$*" >&2
}

fail() {
    say "packaging/dist.sh: $*"
    exit 1
}

has_target() {
    rustup target list --installed 2>/dev/null | grep -qx "$1" || rustup target add "$1" >/dev/null 2>&1
}

# Sets what C code and the linker need for a target; fails where this machine has none of it.
toolchain_of() {
    case $1 in
    "$(uname -m)"-unknown-linux-musl) command -v musl-gcc >/dev/null || return 1 ;;
    aarch64-unknown-linux-musl)
        command -v aarch64-linux-gnu-gcc >/dev/null || return 1
        export CC_aarch64_unknown_linux_musl=aarch64-linux-gnu-gcc
        # The C library comes with Rust's target; gcc here would link its own.
        export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=rust-lld
        ;;
    *-unknown-linux-gnu) ;;
    *) return 1 ;;
    esac
}

runner_of() {
    case $1 in
    "$(uname -m)"-*) ;;
    aarch64-*) command -v qemu-aarch64-static || return 1 ;;
    *) return 1 ;;
    esac
}

compile() {
    local target=$1 rustflags
    rustflags="--remap-path-prefix=$PWD=/walvault --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
    # At a fixed place, as build.rs does it where the linker is the machine's: see there.
    case $target in *-musl) rustflags+=" -C relocation-model=static" ;; esac
    RUSTFLAGS=$rustflags cargo build --release --locked --target "$target" --target-dir "$build" ||
        fail "the build for $target failed (see above)"
}

# The program must say what it is, and a static one must need nothing of the machine that it runs on.
inspect() {
    local target=$1 program=$2 runner
    case $target in
    *-musl)
        if readelf -d "$program" | grep -q '(NEEDED)' || readelf -l "$program" | grep -q 'INTERP'; then
            fail "$program is not static"
        fi
        say "$target: static" ;;
    *)
        say "$target: NOT static. It needs $(readelf -d "$program" | sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p' | paste -sd' ')," \
            "and of glibc at least $(readelf -V "$program" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n1)" ;;
    esac
    if runner=$(runner_of "$target"); then
        [ "$($runner "$program" --version)" = "walvault $version" ] || fail "$program does not run, or is another version"
    else
        say "$target: this machine cannot run it (no qemu-user-static): built, not tried"
    fi
}

# The journey that the tests make with the program as built for them, with this one.
try_in_empty_root() {
    tests/pg/install.sh test
    WALVAULT_TEST_PROGRAM=$(realpath "$1") cargo test --locked --target-dir "$build" --test it -- empty_root:: >"$out/test.log" 2>&1 ||
        { cat "$out/test.log" >&2; fail "$1 does not work in an empty root"; }
    rm "$out/test.log"
    say "$1 works in an empty, read-only root as a user without a name"
}

# What goes into the archive: unpacked over /usr/local, everything is in its place.
stage() {
    local target=$1 program=$2 root=$3 host=$4
    local doc=$root/share/doc/walvault
    mkdir -p "$root"/{bin,lib/systemd/system,share/{man/man1,bash-completion/completions,zsh/site-functions,fish/vendor_completions.d}} \
        "$doc"
    install -m 755 "$program" "$root/bin/walvault"
    # The words are the same for every target: a program that runs here writes them.
    "$host" completions bash >"$root/share/bash-completion/completions/walvault"
    "$host" completions zsh >"$root/share/zsh/site-functions/_walvault"
    "$host" completions fish >"$root/share/fish/vendor_completions.d/walvault.fish"
    "$host" man "$root/share/man/man1"
    cp deploy/systemd/* "$root/lib/systemd/system/"
    cp -r LICENSE README.md CHANGELOG.md docs deploy "$doc/"
    packaging/notices.py "$target" >"$doc/THIRD-PARTY.md"
    # A container's image is built from the archive alone.
    sed -n 's/^COPY \(--chmod=[0-7]* \)\?\([^-].*\) [^ ]*$/\2/p' deploy/container/Containerfile | tr ' ' '\n' |
        while read -r file; do
            [ -f "$root/$file" ] || fail "deploy/container/Containerfile copies $file, which is not in the archive"
        done
    find "$root" -type d -exec chmod 755 {} +
    find "$root" -type f ! -path "$root/bin/*" -exec chmod 644 {} +
    (cd "$root" && find . -type f ! -name SHA256SUMS -printf '%P\0' | sort -z | xargs -0 sha256sum >SHA256SUMS)
}

pack() {
    local name=$1
    tar --directory "$out/stage" --sort=name --format=ustar --owner=0 --group=0 --numeric-owner \
        --mtime="@$epoch" --create "$name" | gzip -9 --no-name
}

one() {
    local target=$1 name=walvault-$version-$1
    compile "$target"
    local program=$build/$target/release/walvault
    inspect "$target" "$program"
    case $target in
    "$(uname -m)"-*)
        native=$program
        try_in_empty_root "$program" ;;
    esac
    [ -n "$native" ] || fail "build this machine's own target first: its program writes the manual"
    stage "$target" "$program" "$out/stage/$name" "$native"
    pack "$name" >"$out/$name.tar.gz"
    made+=("$name.tar.gz")
    say "$target: $(stat -c %s "$program") bytes, packed $(stat -c %s "$out/$name.tar.gz")"
}

main() {
    local own
    own=$(uname -m)
    rm -rf "$out"
    mkdir -p "$out/stage"
    made=() native=
    if [ $# -gt 0 ]; then
        for target in "$@"; do
            toolchain_of "$target" && has_target "$target" || fail "this machine cannot build for $target"
            one "$target"
        done
    else
        local target=$own-unknown-linux-musl
        if ! (toolchain_of "$target" && has_target "$target"); then
            say "WARNING: no static program: the target $target or musl-gcc cannot be had here; building for glibc"
            target=$own-unknown-linux-gnu
        fi
        toolchain_of "$target"
        one "$target"
        target=aarch64-unknown-linux-musl
        if [ "$own" != aarch64 ]; then
            if (toolchain_of "$target" && has_target "$target"); then
                toolchain_of "$target"
                one "$target"
            else
                say "no arm64: the target $target or gcc-aarch64-linux-gnu cannot be had here"
            fi
        fi
    fi
    rm -rf "$out/stage"
    (cd "$out" && sha256sum "${made[@]}" >SHA256SUMS && cat SHA256SUMS)
}

main "$@"
