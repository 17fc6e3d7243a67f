#!/bin/bash
# PostgreSQL's own recovery tests, with walvault as archive_command and restore_command.
#
#   tests/pg/recovery.sh SOURCE [NAME...]     SOURCE: PostgreSQL's source tree, of any supported major
#                                             NAME: beginning of a test's name, such as 024; those that archive by default
#
# Nothing is built: tests and their library are taken from the tree, servers from where tests/pg/install.sh puts them
# (or PG_BIN). Each node's archive directory becomes a repository of its own. Needs Perl's IPC::Run (libipc-run-perl).
# Prints one line a test; exits 1 if one failed.
set -eu

SOURCE=${1:?"usage: $0 SOURCE [NAME...]"}
shift
TREE=$(cd "$(dirname "$0")/../.." && pwd)
PROGRAM=${WALVAULT:-$TREE/target/release/walvault}
[ -x "$PROGRAM" ] || { echo "$PROGRAM is not there: cargo build --release --locked, or set WALVAULT" >&2; exit 2; }
[ -d "$SOURCE/src/test/recovery/t" ] || { echo "$SOURCE is no source tree of PostgreSQL" >&2; exit 2; }
perl -MIPC::Run -e 1 2>/dev/null || { echo "Perl has no IPC::Run: apt-get install libipc-run-perl" >&2; exit 2; }

MAJOR=$(sed -n "s/^PACKAGE_VERSION='\([0-9]*\).*/\1/p" "$SOURCE/configure" 2>/dev/null)
[ -n "$MAJOR" ] || MAJOR=${PG_MAJOR:?"$SOURCE has no configure: set PG_MAJOR"}
for BIN in "${PG_BIN:-}" "/usr/lib/postgresql/$MAJOR/bin" "/var/cache/walvault-test/pg/$MAJOR/bin"; do
    [ -x "$BIN/postgres" ] && break
done
[ -x "$BIN/postgres" ] || { echo "PostgreSQL $MAJOR is not here: run tests/pg/install.sh test, or set PG_BIN" >&2; exit 2; }

PLACE=$(mktemp -d "${TMPDIR:-/var/tmp}/walvault-recovery-XXXXXX")
trap 'rm -rf "$PLACE"' EXIT
mkdir "$PLACE/bin" "$PLACE/check"
cp -r "$SOURCE/src/test/perl" "$SOURCE/src/test/recovery" "$PLACE"
cp "$PROGRAM" "$PLACE/bin/walvault"

# The archive directory of a node, and what PostgreSQL gives. Some tests look there for a file's name: it stands there, and
# nothing under it, once walvault has archived the file. What a test puts there itself is archived when it is asked for.
cat > "$PLACE/bin/in-repository" <<END
export WALVAULT_REPO="file://\$1/walvault" WALVAULT_CLUSTER=main WALVAULT_RUNTIME_DIR="$PLACE/none"
# The tests promote while the primary lives: whoever comes may write.
export WALVAULT_OWNER_GRACE=0 WALVAULT_HOLE_TIMEOUT=5 WALVAULT_STANDBY_HOLE_TIMEOUT=2
# At a test's end the directory may be gone before the server is.
[ ! -d "\$1" ] || [ -e "\$1/walvault/main/repository.json" ] || "$PLACE/bin/walvault" init >/dev/null 2>&1 || :
END
cat > "$PLACE/bin/push" <<END
#!/bin/sh
. "$PLACE/bin/in-repository"
"$PLACE/bin/walvault" wal push "\$2" && : >> "\$1/\${2##*/}"
END
cat > "$PLACE/bin/fetch" <<END
#!/bin/sh
. "$PLACE/bin/in-repository"
[ ! -s "\$1/\$2" ] || WALVAULT_PGDATA=. "$PLACE/bin/walvault" wal push "\$1/\$2"
shift
exec "$PLACE/bin/walvault" wal fetch "\$@"
END
chmod -R a+rX,u+w "$PLACE"
chmod 755 "$PLACE/bin/"*

# The two places in which the tests' library writes a command, and the one test that copies into an archive itself.
LIBRARY=$(find "$PLACE/perl" -name Cluster.pm)
sed -i "s|qq{cp \"\$path/%f\" \"%p\"}|qq{$PLACE/bin/fetch \"\$path\" %f \"%p\"}|
        s|qq{cp \"%p\" \"\$path/%f\"}|qq{$PLACE/bin/push \"\$path\" \"%p\"}|" "$LIBRARY"
[ "$(grep -c "$PLACE/bin/" "$LIBRARY")" = 2 ] || { echo "$LIBRARY is of a shape that is not known here" >&2; exit 2; }

if [ $# = 0 ]; then
    set -- $(cd "$PLACE/recovery/t" && grep -lE 'has_archiving|has_restoring|archive_dir|enable_archiving' ./*.pl | sed 's|^\./||')
fi
RUN=(env "PATH=$BIN:$PATH" PG_REGRESS=/bin/true "TESTDIR=$PLACE/check" "TESTDATADIR=$PLACE/check" "TESTLOGDIR=$PLACE/check/log"
    PGPORT=65432 LC_ALL=C PG_TEST_TIMEOUT_DEFAULT=60)
if [ "$(id -u)" = 0 ]; then
    chown -R postgres "$PLACE"
    RUN=(setpriv --reuid=postgres --regid=postgres --clear-groups "${RUN[@]}")
fi

FAILED=0
cd "$PLACE/recovery"
for NAME in "$@"; do
    for TEST in t/"$NAME"*; do
        if timeout "${PG_TEST_LIMIT:-600}" "${RUN[@]}" prove -I "$PLACE/perl" -I "$PLACE/recovery" "$TEST" > "$PLACE/out" 2>&1; then
            echo "ok      $(basename "$TEST")   $(sed -n 's/^Files=.*Tests=\([0-9]*\).*/\1 checks/p' "$PLACE/out")"
        else
            FAILED=1
            echo "FAILED  $(basename "$TEST")"
            grep -v '^#   at ' "$PLACE/out" | tail -20
            [ -z "${KEEP:-}" ] || { mkdir -p "$KEEP" && cp -r "$PLACE/check" "$KEEP/$(basename "$TEST")"; }
        fi
    done
done
exit $FAILED
