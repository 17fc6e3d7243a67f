"""A PostgreSQL server with data of known kinds, and the user it runs as."""

import glob
import os
import pwd
import shutil
import subprocess
import tempfile


class User:
    """The operating-system user for servers and tools: `postgres` if the benchmark is root's, else its own."""

    def __init__(self):
        entry = pwd.getpwnam("postgres") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
        self.uid, self.gid, self.name = entry.pw_uid, entry.pw_gid, entry.pw_name

    def popen(self):
        """Arguments for Popen and its kin."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if os.getuid() == 0 else {}

    def directory(self, path):
        """Makes a directory of this user's."""
        os.makedirs(path, mode=0o700)
        os.chown(path, self.uid, self.gid)
        return path


class Scratch:
    """A directory outside the tree that goes away with everything in it."""

    def __init__(self, user):
        parent = os.environ.get("BENCH_DIR", "/var/tmp")
        self.path = tempfile.mkdtemp(prefix="walvault-bench-", dir=parent)
        os.chown(self.path, user.uid, user.gid)

    def __enter__(self):
        return self.path

    def __exit__(self, *_):
        shutil.rmtree(self.path, ignore_errors=True)


def programs():
    """Returns the directory of PostgreSQL 15's programs."""
    found = os.environ.get("BENCH_PG_BIN") or next(iter(glob.glob("/usr/lib/postgresql/15/bin")), None)
    if not found or not os.path.exists(f"{found}/postgres"):
        raise SystemExit("PostgreSQL 15 is not here: run tests/pg/install.sh test, or set BENCH_PG_BIN")
    return found


class Cluster:
    """One scratch server; stopped when left."""

    port = 54321

    def __init__(self, scratch, name, user):
        self.user, self.bin = user, programs()
        self.path, self.socket = f"{scratch}/{name}", f"{scratch}/{name}-socket"
        self.log = f"{scratch}/{name}.log"
        user.directory(self.socket)
        self._program("initdb", "-D", self.path, "-k", "--no-sync", "--locale=C", "-E", "UTF8", "-A", "trust", "-U", "postgres")
        with open(f"{self.path}/postgresql.conf", "a") as configuration:
            configuration.write(CONFIGURATION.format(socket=self.socket, port=self.port))

    def __enter__(self):
        # Loading is not measured and need not be durable.
        self.start("-c fsync=off")
        return self

    def __exit__(self, *_):
        self.stop("immediate")

    def start(self, options=""):
        """Starts the server."""
        self._program("pg_ctl", "-D", self.path, "-l", self.log, "-w", "-t", "120", "-o", options, "start")

    def stop(self, mode="fast"):
        """Stops it, if it runs."""
        if os.path.exists(f"{self.path}/postmaster.pid"):
            self._program("pg_ctl", "-D", self.path, "-m", mode, "-w", "stop")

    def settle(self):
        """Makes what was loaded durable; from here on the server runs as a server does."""
        self.sql("VACUUM FREEZE; CHECKPOINT")
        self.stop()
        os.sync()
        self.start()

    def sql(self, text, database="postgres"):
        """Runs statements and returns what the last one printed."""
        return self._program("psql", "-h", self.socket, "-p", str(self.port), "-U", "postgres", "-d", database, "-qAtX", "-v", "ON_ERROR_STOP=1", text=text)

    def pgbench(self, *arguments):
        """Runs pgbench, whose commits need not be durable: what it does is not measured."""
        self._program("pgbench", "-h", self.socket, "-p", str(self.port), "-U", "postgres", "-q" if "-i" in arguments else "-n", *arguments, "postgres")

    def archive_with(self, command, settle=True):
        """Makes the server archive by `command`; returns once it knows, if it is to `settle`."""
        quoted = command.replace("'", "''")
        self.sql(f"ALTER SYSTEM SET archive_command = '{quoted}'")
        self.sql("SELECT pg_reload_conf()")
        if settle:
            self.sql("SELECT pg_sleep(0.3)")

    def _program(self, name, *arguments, text=""):
        done = subprocess.run(
            [f"{self.bin}/{name}", *arguments], cwd="/", input=text, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if name != "pg_ctl" else subprocess.DEVNULL, text=True,
            env={**os.environ, "PGOPTIONS": "-c synchronous_commit=off"} if name == "pgbench" else None, **self.user.popen(),
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{name} {' '.join(arguments)[:300]}\nended with status {done.returncode}\n{text[:300]}\n{done.stdout}")
        return done.stdout.strip()


CONFIGURATION = """
listen_addresses = ''
unix_socket_directories = '{socket}'
port = {port}
shared_buffers = 256MB
max_wal_size = 4GB
min_wal_size = 1GB
wal_compression = off
autovacuum = off
archive_mode = on
archive_command = '/bin/true'
checkpoint_timeout = 1h
"""


def load(cluster, gib):
    """Fills a server with about `gib` GiB: two thirds pgbench's tables, the rest JSON text and bytes like noise."""
    cluster.pgbench("-i", "-I", "dtgp", "-s", str(max(1, round(gib * 45))))
    rows = round(gib * 170_000)
    cluster.sql(f"""
        CREATE TABLE events AS
            SELECT n AS id, json_build_object('user', n % 9973, 'at', now() - n * interval '1 s', 'path',
                '/shop/' || md5((n % 700)::text) || '/' || n, 'agent', 'Mozilla/5.0 (X11; Linux x86_64)', 'ms',
                n % 3001 * 7919 % 3001, 'tags', ARRAY[md5((n % 31)::text), md5((n % 97)::text)])::text AS body
            FROM generate_series(1, {rows * 4}) AS n;
        CREATE TABLE noise (id bigint, body bytea);
        ALTER TABLE noise ALTER COLUMN body SET STORAGE EXTERNAL;
        INSERT INTO noise SELECT n, (SELECT string_agg(sha512((n * 1000 + m)::text::bytea), '') FROM generate_series(1, 16) AS m)
            FROM generate_series(1, {rows}) AS n""")


def load_small(cluster, tables):
    """Fills a server with many small tables."""
    for first in range(0, tables, 250):
        cluster.sql(f"""DO $$ BEGIN FOR n IN {first}..{min(first + 250, tables) - 1} LOOP
            EXECUTE format('CREATE TABLE small_%s (id int PRIMARY KEY, body text)', n);
            EXECUTE format('INSERT INTO small_%s SELECT m, md5(m::text) FROM generate_series(1, 100) AS m', n);
            END LOOP; END $$""")


def segments(cluster, scratch, busy, empty):
    """Lets the server write WAL and returns the segments: `busy` full ones and `empty` ones with hardly a record."""
    kept = cluster.user.directory(f"{scratch}/{os.path.basename(cluster.path)}-wal")
    cluster.archive_with(f'cp "%p" {kept}/%f')
    cluster.sql("SELECT pg_switch_wal()")
    first = _current(cluster)
    while _number(_current(cluster)) - _number(first) < busy:
        cluster.pgbench("-c", "2", "-t", "4000")
        cluster.sql("INSERT INTO events SELECT id, body FROM events LIMIT 5000; INSERT INTO noise SELECT * FROM noise LIMIT 500")
        cluster.sql("CHECKPOINT")
    cluster.sql("SELECT pg_switch_wal()")
    after = _current(cluster)
    for _ in range(empty):
        cluster.sql("INSERT INTO events VALUES (0, 'nearly nothing')")
        cluster.sql("SELECT pg_switch_wal()")
    last = _current(cluster)
    cluster.sql(WAIT_ARCHIVED.format(before=last))
    names = sorted(os.listdir(kept))
    full = [name for name in names if first <= name < after][:busy]
    bare = [name for name in names if after <= name < last][:empty]
    return [f"{kept}/{name}" for name in full], [f"{kept}/{name}" for name in bare]


def _current(cluster):
    return cluster.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn() + 1)")


def _number(name):
    return int(name[8:16], 16) * 256 + int(name[16:], 16)


WAIT_ARCHIVED = """DO $$ BEGIN
    FOR n IN 1..600 LOOP
        EXIT WHEN NOT EXISTS (SELECT FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready' AND name < '{before}');
        PERFORM pg_sleep(0.1);
    END LOOP; END $$"""
