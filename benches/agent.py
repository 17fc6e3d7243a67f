#!/usr/bin/env python3
"""walvault's agent beside pgBackRest: the same segments, in turn, in one run.

    benches/agent.py                            everything
    benches/agent.py push drain fetch recovery  some of it

push   one synchronous call a segment, busy and nearly empty: with an agent (its CPU counted too), without, pgBackRest.
drain  PostgreSQL's own archiver works off a backlog: the agent at one level and with a level that may drop, pgBackRest
       with and without its asynchronous mode.
fetch  one call a segment in a row, as a recovery asks, the call alone: from what was fetched ahead, and pgBackRest.
recovery  redo of a long log: all of it in pg_wal, fetched by an agent, by pgBackRest's asynchronous mode, by a plain cp.

Prints medians [least–most] and ratios of medians. On a busy machine trust CPU and ratios.

    BENCH_PUSHES  segments of each kind (15)    BENCH_DRAIN  segments of the backlog (100)    BENCH_DRAINS  times (3)
    BENCH_RECOVERY  segments of the log (100)   BENCH_RECOVERIES  recoveries by each (1)
    BENCH_DIR     where the scratch goes (/var/tmp), and what peers.py reads besides
"""

import argparse
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time

from cluster import Cluster, Scratch, User, _current, _number, load, segments
from measure import Sample, in_turn, run, table
from peers import TREE, PgBackRest, Walvault, size_of, stored_wal
from recovery import AsyncGet
from recovery import recovery as recoveries


class WithAgent(Walvault):
    """walvault whose commands find an agent."""

    def __init__(self, name, binary, cpus, scratch, user, settings=None):
        super().__init__(name, binary, cpus, scratch, user)
        self.settings, self.process = settings or {}, None

    def environment(self):
        places = {"WALVAULT_RUNTIME_DIR": f"{self.root}/run", "WALVAULT_SCRATCH_DIR": f"{self.root}/scratch"}
        return {**super().environment(), **places, **self.settings}

    def archive_command(self):
        words = " ".join(f"{name}={shlex.quote(value)}" for name, value in self.environment().items() if name != "PATH")
        return f"{words} {super().archive_command()}"

    def reset(self, cluster):
        self.stop()
        super().reset(cluster)
        for name in ("run", "scratch"):
            self.user.directory(f"{self.root}/{name}")
        log = open(f"{self.root}/agent.log", "w")
        self.process = subprocess.Popen(
            self.command("agent"), env=self.environment(), stderr=log, stdout=log, cwd="/", **self.user.popen()
        )
        while not os.path.exists(f"{self.root}/run/main.sock"):
            time.sleep(0.01)
        time.sleep(0.2)
        self.idle = self.memory("VmRSS")

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait()
            self.process = None

    def cpu(self):
        """Seconds that the agent has used, threads that have ended included: what clock_getcpuclockid(3) gives a clock for."""
        return time.clock_gettime(~self.process.pid << 3 | 2)

    def memory(self, key):
        """MiB."""
        for line in open(f"/proc/{self.process.pid}/status"):
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) / 1024
        return 0.0

    def forget_peak(self):
        """Has VmHWM begin anew; see proc(5), clear_refs."""
        with open(f"/proc/{self.process.pid}/clear_refs", "w") as file:
            file.write("5")

    def restore_command(self, data):
        """What a server fetches with."""
        words = " ".join(f"{name}={shlex.quote(value)}" for name, value in self.environment().items() if name != "PATH")
        return " ".join([words, *self.command("wal", "fetch", "%f", '"%p"')])

    def push(self, cluster, segment):
        return self.with_agents_cpu(lambda: super(WithAgent, self).push(cluster, segment))

    def with_agents_cpu(self, call):
        before = self.cpu()
        sample = call()
        sample.cpu += self.cpu() - before
        return sample


class Async(PgBackRest):
    """pgBackRest that archives ahead and answers from its spool."""

    def __init__(self, workers, scratch, user):
        super().__init__("pgbackrest async", workers, {**PgBackRest.tuned(), "archive-async": "y"}, scratch, user)


def push(bench):
    """Segments, one call each."""
    with Cluster(bench.scratch, "push", bench.user) as cluster:
        load(cluster, 0.25)
        cluster.settle()
        kinds = segments(cluster, bench.scratch, bench.pushes, bench.pushes)
        ours = WithAgent("agent", bench.binary, 2, bench.scratch, bench.user)
        alone = Walvault("alone", bench.binary, 2, bench.scratch, bench.user)
        theirs = PgBackRest("pgbackrest zst-3", 1, PgBackRest.tuned(), bench.scratch, bench.user)
        peers = [ours, alone, theirs]
        for title, of_kind in zip(("push of a busy segment", "push of a nearly empty segment"), kinds):
            for peer in peers:
                peer.reset(cluster)
                peer.push(cluster, of_kind[0])
            left = {peer.name: iter(of_kind[1:]) for peer in peers}
            calls = {peer.name: lambda peer=peer: peer.push(cluster, next(left[peer.name])) for peer in peers}
            samples = in_turn(len(of_kind) - 1, calls)
            for peer in peers:
                stored = sum(size_of(f"{peer.root}/repo/{place}") for place in stored_wal(peer)) / len(of_kind)
                for sample in samples[peer.name]:
                    sample.stored = stored
            yield table(title, samples, {peer.name: [theirs.name] for peer in (ours, alone)})
            yield f"agent: idle {ours.idle:.1f} MiB, busiest {ours.memory('VmHWM'):.1f} MiB\n"
        client = most_memory(ours.command("wal", "push", kinds[0][0]), bench.user, {**ours.environment(), "WALVAULT_PGDATA": cluster.path})
        itself = most_memory(alone.command("wal", "push", kinds[0][0]), bench.user, {**alone.environment(), "WALVAULT_PGDATA": cluster.path})
        yield f"command: {client:.1f} MiB with an agent, {itself:.1f} MiB without\n"
        ours.stop()


def most_memory(command, user, environment):
    """MiB that a command had resident at the most, as often as it could be looked at."""
    process = subprocess.Popen(command, env=environment, cwd="/", stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user.popen())
    most = 0
    while process.poll() is None:
        try:
            with open(f"/proc/{process.pid}/status") as status, open(f"/proc/{process.pid}/cmdline") as words:
                # Until it has become the command it is this process.
                if "python" not in words.read():
                    most = max([most, *(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))])
        except OSError:
            pass
    return most / 1024


def recovery(bench):
    """A long log, recovered."""
    ours = WithAgent("agent", bench.binary, 2, bench.scratch, bench.user)
    yield from recoveries(bench, ours, AsyncGet(2, bench.scratch, bench.user))


def drain(bench):
    """A backlog, worked off by the server's own archiver: the same segments by each."""
    with Cluster(bench.scratch, "drain", bench.user) as cluster:
        load(cluster, 0.25)
        cluster.settle()
        same = {"WALVAULT_BACKLOG_LEVEL": "3"}
        ours = WithAgent("agent, one level", bench.binary, 2, bench.scratch, bench.user, same)
        lower = WithAgent("agent", bench.binary, 2, bench.scratch, bench.user)
        theirs = Async(2, bench.scratch, bench.user)
        sync = PgBackRest("pgbackrest zst-3", 1, PgBackRest.tuned(), bench.scratch, bench.user)
        waiting = fill(bench, cluster)
        # Once unmeasured: whoever reads the log first reads it from the disk.
        one_drain(bench, cluster, sync, waiting)
        calls = {peer.name: lambda peer=peer: one_drain(bench, cluster, peer, waiting) for peer in (ours, lower, theirs, sync)}
        samples = in_turn(int(os.environ.get("BENCH_DRAINS", "3")), calls)
        for name, taken in samples.items():
            yield f"{name}: {bench.drains / statistics.median(sample.wall for sample in taken):.1f} segments/s"
        yield table(f"{bench.drains} waiting segments", samples, {peer.name: [theirs.name, sync.name] for peer in (ours, lower)})
        yield f"agent: busiest {lower.memory('VmHWM'):.1f} MiB\n"
        ours.stop()
        lower.stop()


def fill(bench, cluster):
    """Lets the server write a backlog, which it keeps, and returns the names of its segments."""
    cluster.archive_with("/bin/false")
    cluster.sql("ALTER SYSTEM SET wal_keep_size = '64GB'")
    cluster.sql("SELECT pg_switch_wal()")
    first = _current(cluster)
    while _number(_current(cluster)) - _number(first) < bench.drains:
        cluster.pgbench("-c", "2", "-t", "4000")
        cluster.sql("INSERT INTO events SELECT id, body FROM events LIMIT 5000; INSERT INTO noise SELECT * FROM noise LIMIT 500")
        cluster.sql("CHECKPOINT")
    cluster.sql("SELECT pg_switch_wal()")
    last = _current(cluster)
    names = sorted(os.listdir(f"{cluster.path}/pg_wal/archive_status"))
    return [name.removesuffix(".ready") for name in names if first <= name < last]


def one_drain(bench, cluster, peer, waiting):
    peer.reset(cluster)
    status = f"{cluster.path}/pg_wal/archive_status"
    # What the one before has archived waits again.
    for name in waiting:
        if os.path.exists(f"{status}/{name}.done"):
            os.rename(f"{status}/{name}.done", f"{status}/{name}.ready")
    os.sync()
    began = time.perf_counter()
    cluster.archive_with(peer.archive_command(), settle=False)
    left, last = len(waiting), began
    while left:
        time.sleep(0.02)
        now = sum(os.path.exists(f"{status}/{name}.ready") for name in waiting)
        if now < left:
            left, last = now, time.perf_counter()
        elif time.perf_counter() - last > 60:
            sys.exit(f"{peer.name}: the archiver got no further for 60 s, with {left} segments to go")
    wall = time.perf_counter() - began
    sample = Sample(wall=wall * bench.drains / len(waiting), cpu=0.0, peak=0.0, written=0.0)
    sample.stored = sum(size_of(f"{peer.root}/repo/{place}") for place in stored_wal(peer)) * bench.drains / len(waiting)
    cluster.archive_with("/bin/false")
    return sample


def fetch(bench):
    """Segments, one call each, as a recovery asks for them."""
    with Cluster(bench.scratch, "fetch", bench.user) as cluster:
        load(cluster, 0.25)
        cluster.settle()
        busy, _ = segments(cluster, bench.scratch, max(bench.pushes, 40), 0)
        ours = WithAgent("agent", bench.binary, 2, bench.scratch, bench.user)
        theirs = PgBackRest("pgbackrest zst-3", 1, PgBackRest.tuned(), bench.scratch, bench.user)
        for peer in (ours, theirs):
            peer.reset(cluster)
            for segment in busy:
                peer.push(cluster, segment)
        # A data directory that recovers, as far as the commands can tell.
        data = bench.user.directory(f"{bench.scratch}/recovering")
        for name in ("global", "pg_wal"):
            bench.user.directory(f"{data}/{name}")
        shutil.copy(f"{cluster.path}/global/pg_control", f"{data}/global/pg_control")
        open(f"{data}/recovery.signal", "w").close()
        for folder, folders, files in os.walk(data):
            for name in folders + files:
                os.chown(f"{folder}/{name}", bench.user.uid, bench.user.gid)
        names = [os.path.basename(segment) for segment in busy]

        def ask(peer, name):
            target = "pg_wal/RECOVERYXLOG"
            # As PostgreSQL does before it asks.
            if os.path.exists(f"{data}/{target}"):
                os.remove(f"{data}/{target}")
            if peer is ours:
                command, environment = ours.command("wal", "fetch", name, target), ours.environment()
                # The recovery replays meanwhile: what comes next has the time to arrive.
                time.sleep(0.3)
                return run(command, bench.user, env=environment, cwd=data, log=f"{ours.root}/log")
            command = theirs.command(f"--pg1-path={data}", "archive-get", name, target)
            return run(command, bench.user, env={"PATH": "/usr/bin:/bin"}, cwd=data, log=f"{theirs.root}/messages")

        ask(ours, names[0])
        left = {peer.name: iter(names[1:]) for peer in (ours, theirs)}
        calls = {peer.name: lambda peer=peer: ask(peer, next(left[peer.name])) for peer in (ours, theirs)}
        samples = in_turn(len(names) - 1, calls)
        yield table("fetch of a segment, the call alone", samples, {ours.name: [theirs.name]})
        rates = {name: 1 / statistics.median(sample.wall for sample in taken) for name, taken in samples.items()}
        yield f"rate of calls: {rates[ours.name] / rates[theirs.name]:.1f} times\n"
        yield f"agent: busiest {ours.memory('VmHWM'):.1f} MiB\n"
        ours.stop()


class Bench:
    """What all parts share."""

    def __init__(self, scratch, user, binary):
        self.scratch, self.user, self.binary = scratch, user, binary
        self.pushes = int(os.environ.get("BENCH_PUSHES", "15")) + 1
        self.drains = int(os.environ.get("BENCH_DRAIN", "100"))


PARTS = {part.__name__: part for part in (push, drain, fetch, recovery)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    built = f"{os.environ.get('CARGO_TARGET_DIR', TREE + '/target')}/release/walvault"
    user = User()
    with Scratch(user) as scratch:
        binary = shutil.copy(built, f"{scratch}/walvault")
        print(f"# {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; pgBackRest {'.'.join(map(str, PgBackRest.version()))}\n")
        for name in arguments.parts or PARTS:
            for result in PARTS[name](Bench(scratch, user, binary)):
                print(result, flush=True)


if __name__ == "__main__":
    main()
