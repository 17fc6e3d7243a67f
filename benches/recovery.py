"""Recovery of a long log: what fetching it costs beside WAL that lies in pg_wal already.

A part of agent.py. One base copy and one log; the copy is recovered along it once with everything in pg_wal, once by each
contestant, and once by `cp` of segments that lie there uncompressed: what the machine takes for new files alone. The redo
time is PostgreSQL's own ("redo done ... elapsed"). A contestant's own CPU is that of its agent, and what the server and its
children used beyond the recovery without any fetching. pgBackRest's daemon detaches: its CPU is not counted.
"""

import glob
import os
import re
import shutil
import subprocess
import time

from cluster import Cluster, _current, _number, load, programs
from measure import Sample, in_turn, table
from peers import PgBackRest


def recovery(bench, agent, theirs):
    """Recoveries of BENCH_RECOVERY segments; `agent` and `theirs` make the contestants."""
    count = int(os.environ.get("BENCH_RECOVERY", "100"))
    with Cluster(bench.scratch, "log", bench.user) as cluster:
        load(cluster, 0.25)
        cluster.settle()
        base, wal = f"{bench.scratch}/base", f"{bench.scratch}/log-wal"
        subprocess.run(
            [f"{cluster.bin}/pg_basebackup", "-D", base, "-X", "none", "-c", "fast", "-h", cluster.socket, "-p",
             str(cluster.port), "-U", "postgres"], check=True, cwd="/", **bench.user.popen(),
        )  # fmt: skip
        first = re.search(r"file (\w{24})", open(f"{base}/backup_label").read()).group(1)
        bench.user.directory(wal)
        # The log is the same without waiting for the disk at each commit.
        cluster.sql("ALTER SYSTEM SET synchronous_commit = off")
        cluster.sql("ALTER SYSTEM SET wal_keep_size = '64GB'")
        cluster.archive_with(f'cp "%p" {wal}/%f')
        while _number(_current(cluster)) - _number(first) < count:
            cluster.pgbench("-c", "2", "-t", "1000")
            for _ in range(4):
                cluster.sql("UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid <= 100000")
            cluster.sql("INSERT INTO events SELECT id, body FROM events LIMIT 5000; INSERT INTO noise SELECT * FROM noise LIMIT 500")
            # As after every few minutes of a server's life: pages are in the log whole again.
            cluster.sql("CHECKPOINT")
        cluster.sql("SELECT pg_create_restore_point('the_end'); SELECT pg_switch_wal()")
        last = _current(cluster)
        while f"{_number(last) - 1:08X}" not in {f"{_number(name):08X}" for name in os.listdir(wal) if len(name) == 24}:
            time.sleep(0.1)
        # What was finished before this began was archived by /bin/true.
        for name in os.listdir(f"{cluster.path}/pg_wal"):
            if len(name) == 24 and first <= name < last and not os.path.exists(f"{wal}/{name}"):
                shutil.copy2(f"{cluster.path}/pg_wal/{name}", f"{wal}/{name}")
                os.chown(f"{wal}/{name}", bench.user.uid, bench.user.gid)
        log = sorted(name for name in os.listdir(wal) if len(name) == 24 and first <= name < last)
        contestants = {"agent": agent, theirs.name: theirs, "cp": Copies(wal)}
        for peer in (agent, theirs):
            peer.reset(cluster)
            for name in log:
                peer.push(cluster, f"{wal}/{name}")
    archived = agent.memory("VmHWM")
    agent.forget_peak()
    direct = {"WAL in pg_wal": lambda: one_recovery(bench, base, log, None, wal)}
    calls = {name: lambda peer=peer: one_recovery(bench, base, log, peer, wal) for name, peer in contestants.items()}
    samples = in_turn(int(os.environ.get("BENCH_RECOVERIES", "1")), {**direct, **calls})
    (bare,) = (taken for name, taken in samples.items() if name in direct)
    yield table(f"redo of {len(log)} segments", samples, {name: ["WAL in pg_wal", theirs.name, "cp"] for name in contestants})
    mean = lambda taken: sum(s.cpu for s in taken) / len(taken) / len(log) * 1000
    own, copying = (mean(samples[name]) - mean(bare) for name in ("agent", "cp"))
    yield f"agent: own CPU {own:.0f} ms a segment, {own - copying:.0f} ms more than the {copying:.0f} ms of a cp\n"
    yield "pgBackRest's daemon is nobody's child, and not in its CPU\n"
    yield f"agent: busiest {archived:.1f} MiB archiving, {agent.memory('VmHWM'):.1f} MiB in the recoveries\n"
    agent.stop()


def one_recovery(bench, base, log, peer, wal):
    """Recovers a copy of `base`; with `peer`'s restore_command, or with the log in pg_wal."""
    data, socket = f"{bench.scratch}/recovered", f"{bench.scratch}/recovered-socket"
    for path in (data, socket):
        shutil.rmtree(path, ignore_errors=True)
    subprocess.run(["cp", "-a", base, data], check=True)
    bench.user.directory(socket)
    command = "/bin/false"
    if peer is None:
        for name in log:
            subprocess.run(["cp", "-p", f"{wal}/{name}", f"{data}/pg_wal/{name}"], check=True)
    else:
        command = peer.restore_command(data)
    with open(f"{data}/postgresql.auto.conf", "a") as conf:
        conf.write(f"archive_mode = off\nunix_socket_directories = '{socket}'\nrecovery_target_name = 'the_end'\n")
        conf.write("recovery_target_action = 'promote'\nrestore_command = '{}'\n".format(command.replace("'", "''")))
    open(f"{data}/recovery.signal", "w").close()
    os.chown(f"{data}/recovery.signal", bench.user.uid, bench.user.gid)
    os.sync()
    before = peer.cpu() if hasattr(peer, "cpu") else 0.0
    messages = f"{bench.scratch}/recovered.log"
    with open(messages, "w") as out:
        server = subprocess.Popen([f"{programs()}/postgres", "-D", data], stdout=out, stderr=out, cwd="/", **bench.user.popen())
    while not (done := re.search(r"redo done at .* elapsed: ([0-9.]+) s", open(messages, errors="replace").read())):
        if server.poll() is not None:
            raise SystemExit(open(messages, errors="replace").read()[-3000:])
        time.sleep(0.1)
    while "ready to accept connections" not in open(messages, errors="replace").read().split("redo done")[-1]:
        time.sleep(0.1)
    agents = peer.cpu() - before if hasattr(peer, "cpu") else 0.0
    server.terminate()
    _, _, usage = os.wait4(server.pid, 0)
    server.returncode = 0
    for path in glob.glob(f"{bench.scratch}/recovered-socket/*"):
        os.unlink(path)
    return Sample(wall=float(done.group(1)), cpu=usage.ru_utime + usage.ru_stime + agents, peak=0.0, written=0.0)


class Copies:
    """The segments as they were archived, each copied by `cp`."""

    def __init__(self, wal):
        self.wal = wal

    def restore_command(self, data):
        """What the server fetches with."""
        return f'cp {self.wal}/%f "%p"'


class AsyncGet(PgBackRest):
    """pgBackRest that fetches ahead into its spool."""

    def __init__(self, workers, scratch, user):
        options = {**PgBackRest.tuned(), "archive-get-queue-max": "256MiB"}
        super().__init__("pgbackrest async get", workers, options, scratch, user)

    def restore_command(self, data):
        """What the server fetches with."""
        return " ".join(self.command(f"--pg1-path={data}", "--archive-async", "archive-get", "%f", '"%p"'))
