//! A repository of which a byte is flipped or an object is cut: a restore and a fetch refuse it, or give what they gave
//! before, and nothing else. Every byte and every length of one small repository, in the long run; some by chance in the
//! short one. Nearly all is done through the library, which is the program without its process; some through that.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::OnceLock;

use walvault::archive::{Caller, FetchBudgets, Fetched, Fetcher};
use walvault::catalog::LaneCatalog;
use walvault::format::recovery_plan::{RECOVERY_PLAN_PATH, RecoveryPlan};
use walvault::format::tables::Tables;
use walvault::pg::WalFileName;
use walvault::progress::Progress;
use walvault::repo::{Lane, Repository};
use walvault::restore::{
    Budget, Destination, Plan, Purpose, RecoveryCommand, Request, Selection, Tablespaces, Target, TargetAction,
};
use walvault::store::{Access, RetryPolicy, Store};

use crate::support::{Chance, Ledger, Major, Scratch, Site, Snapshot, TestRepo, TestServer, Walvault, soaking};

/// A small repository, and what it gives while it is whole.
struct Sound {
    site: Site,
    /// Every object that is not WAL's own: its key and its bytes.
    objects: Vec<(String, Vec<u8>)>,
    /// Archived files that a recovery may ask for, with their contents.
    archived: Vec<(WalFileName, Vec<u8>)>,
    /// What the plan for the latest moment says.
    plan: String,
    /// The plan that a restore leaves.
    recovery_plan: RecoveryPlan,
    /// What a restore leaves, at [`Bench::data`].
    restored: Snapshot,
}

/// What a damaged object did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Effect {
    /// Something that depends on it was refused.
    Refused,
    /// Everything was as before: nothing reads that byte.
    Harmless,
}

/// One thread's own copy of the repository, and its place to restore to.
struct Bench {
    sound: &'static Sound,
    repo: TestRepo,
    place: Scratch,
    /// The lane and what the manifest names, read while the copy was whole.
    lane: Lane,
    tables: Tables,
}

impl Sound {
    fn get() -> &'static Self {
        static MADE: OnceLock<Sound> = OnceLock::new();
        MADE.get_or_init(Self::make)
    }

    /// The smallest cluster that PostgreSQL runs with: one database, segments of 1 MiB, two timelines.
    fn make() -> Self {
        let mut site = Site::of(TestServer::builder(Major::V17).segment_mib(1));
        let mut ledger = Ledger::create(&site.server);
        ledger.commit(&site.server, 5);
        site.server.sql("alter database template0 is_template false; drop database template0; checkpoint");
        site.backup();
        ledger.commit(&site.server, 5);
        site.server.archive_all();
        site.server.kill9();
        let mut next = site.restore(&["--to-latest", "--as", "primary", "--target-action", "promote"]);
        next.promoted();
        ledger.resume(&next.server);
        ledger.commit(&next.server, 5);
        next.server.archive_all();
        let history = next.server.pgdata().join("pg_wal/archive_status/00000002.history.done");
        crate::support::within(std::time::Duration::from_secs(60), || history.exists(), "the history is archived");
        next.server.kill9();

        let bench = Scratch::new();
        let lane = lane(&site.repo).expect("it is whole");
        let plan = planned(&lane).expect("it is whole");
        let data = bench.join("data");
        restore(&lane, &plan, &data).expect("it is whole");
        let recovery_plan = fs::read(data.join(RECOVERY_PLAN_PATH)).expect("a restore leaves it");
        let archived = site.repo.find_all("*/wal/*").into_iter().filter_map(|key| {
            let name = key.rsplit('/').next().expect("a key").trim_end_matches(".zst");
            // A `.partial`'s last part is its digest: it is never fetched under its own name.
            Some((WalFileName::from_str(name).ok()?, zstd_of(&site.repo.read(&key))))
        });
        let archived = archived.collect();
        let objects = site.repo.objects().into_iter().map(|key| (key.clone(), site.repo.read(&key))).collect();
        let plan = format!("{plan:?}");
        let restored = Snapshot::of(&data);
        let recovery_plan = RecoveryPlan::decode(&recovery_plan).expect("a restore wrote it");
        Self { site, objects, archived, plan, recovery_plan, restored }
    }

    /// Names a damage: the byte of all objects' bytes that it is at, flipped or the first that is missing.
    fn bytes(&self) -> u64 {
        self.objects.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    fn locate(&self, mut at: u64) -> (&str, &[u8], usize) {
        for (key, bytes) in &self.objects {
            if at < bytes.len() as u64 {
                return (key, bytes, at as usize);
            }
            at -= bytes.len() as u64;
        }
        panic!("there are only {} bytes", self.bytes());
    }
}

fn zstd_of(stored: &[u8]) -> Vec<u8> {
    // An object is a zstd file: read by another hand than ours.
    let place = Scratch::new();
    fs::write(place.join("object.zst"), stored).expect("a file in a fresh directory");
    let zstd = std::process::Command::new("/usr/bin/zstd").args(["-dcq"]).arg(place.join("object.zst")).output();
    zstd.expect("zstd runs").stdout
}

fn lane(repo: &TestRepo) -> Result<Lane, String> {
    let url = repo.url().parse().expect("a URL");
    let store = Store::open(&url, &Access::default(), RetryPolicy::brisk(1)).map_err(said)?;
    let repository = Repository::open(store, "main").map_err(said)?;
    let ids = repository.lane_ids().map_err(said)?;
    let [only] = ids.as_slice() else { return Err(format!("{} lanes", ids.len())) };
    repository.lane(*only).map_err(said)?.ok_or_else(|| "no lane".to_owned())
}

fn planned(lane: &Lane) -> Result<Plan, String> {
    let catalogue = LaneCatalog::load(lane).map_err(said)?;
    let request =
        Request { target: Target::Latest, purpose: Purpose::Clone, exclusive: false, timeline: None, backup: None };
    walvault::restore::plan(lane, &catalogue, &request).map_err(said)
}

fn restore(lane: &Lane, plan: &Plan, data: &Path) -> Result<(), String> {
    let destination = Destination {
        data_directory: data.to_owned(),
        tablespaces: Tablespaces::default(),
        wal_directory: None,
        allowed_tablespace_paths: Vec::new(),
        configuration_directory: None,
        owner: None,
        writer: String::new(),
        command: RecoveryCommand { words: vec!["walvault".to_owned()] },
        action: TargetAction::Pause,
        primary_conninfo: None,
        settings: Vec::new(),
        budget: Budget::new(256 << 20, 1),
        delta: false,
        selection: Selection::default(),
    };
    walvault::restore::perform(lane, plan, &destination, &Progress::default()).map(drop).map_err(said)
}

/// The error with its causes.
fn said(error: impl std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(words, ": {error}");
        cause = error.source();
    }
    words
}

impl Bench {
    fn new(sound: &'static Sound) -> Self {
        let repo = sound.site.repo.duplicate();
        let lane = lane(&repo).expect("it is whole");
        let plan = planned(&lane).expect("it is whole");
        let tables = lane.tables(&plan.manifest).expect("it is whole");
        let bench = Self { sound, repo, place: Scratch::new(), lane, tables };
        assert_eq!(bench.judge_whole("nothing was damaged"), Effect::Harmless);
        bench
    }

    fn data(&self) -> PathBuf {
        self.place.join("data")
    }

    /// Does harm, judges what becomes of it, and undoes it.
    #[track_caller]
    fn harmed(&self, at: u64, cut: bool, judge: impl Fn(&str) -> Effect) -> (String, Effect) {
        let (key, bytes, offset) = self.sound.locate(at);
        let path = self.repo.path().join(key);
        let mut harmed = bytes.to_vec();
        if cut {
            harmed.truncate(offset);
        } else {
            harmed[offset] ^= 1 << (at % 8);
        }
        fs::write(&path, harmed).expect("root or the owner writes it");
        let effect = judge(key);
        fs::write(&path, bytes).expect("root or the owner writes it");
        (kind_of(key).to_owned(), effect)
    }

    /// Plans, restores, and fetches everything a recovery could ask for, with a plan and without.
    #[track_caller]
    fn judge_whole(&self, what: &str) -> Effect {
        let lane = match lane(&self.repo) {
            Ok(lane) => lane,
            Err(_) => return Effect::Refused,
        };
        let restored = match planned(&lane) {
            Ok(plan) => self.judge_restore(&lane, &plan, what),
            Err(_) => Effect::Refused,
        };
        let fetched = self.judge_fetches(&lane, what);
        restored.min(fetched)
    }

    #[track_caller]
    fn judge_restore(&self, lane: &Lane, plan: &Plan, what: &str) -> Effect {
        // A damaged manifest or history may leave another way to the same moment; there is none here.
        assert!(format!("{plan:?}") == self.sound.plan, "{what}: another plan is made");
        let data = self.data();
        drop(fs::remove_dir_all(&data));
        match restore(lane, plan, &data) {
            Ok(()) => {
                let differences = self.sound.restored.differences(&Snapshot::of(&data));
                // Where it was restored to is written in two places: the sound one was elsewhere.
                assert!(differences.is_empty(), "{what}: restored and not the same: {differences:#?}");
                Effect::Harmless
            }
            Err(_) => {
                assert!(!data.join("global/pg_control").exists(), "{what}: refused, and the directory can be started");
                Effect::Refused
            }
        }
    }

    #[track_caller]
    fn judge_fetches(&self, lane: &Lane, what: &str) -> Effect {
        let mut effect = Effect::Harmless;
        for caller in [Some(self.sound.recovery_plan.clone()), None] {
            for (name, bytes) in &self.sound.archived {
                effect = effect.min(self.judge_fetch(lane, Caller::Recovery(caller.clone()), name, bytes, what));
            }
        }
        effect
    }

    #[track_caller]
    fn judge_fetch(&self, lane: &Lane, caller: Caller, name: &WalFileName, bytes: &[u8], what: &str) -> Effect {
        let budgets = FetchBudgets { hole: std::time::Duration::ZERO, standby_hole: std::time::Duration::ZERO };
        let wanted = self.place.join("RECOVERYXLOG");
        drop(fs::remove_file(&wanted));
        let off_branch = self.answer_when_sound(&caller, name);
        match Fetcher::new(lane, caller, budgets).fetch(name, &wanted) {
            Ok(Fetched::InPlace) => {
                assert!(fs::read(&wanted).expect("it is in place") == bytes, "{what}: {name} has other bytes");
                assert!(off_branch == Answer::InPlace, "{what}: {name} is served, and was not when all was whole");
                Effect::Harmless
            }
            Ok(Fetched::ProvenAbsent(absence)) => {
                assert!(off_branch == Answer::Absent, "{what}: {name} is called absent: {}", absence.reason());
                Effect::Harmless
            }
            Err(_) if off_branch == Answer::Refused => Effect::Harmless,
            Err(_) => {
                assert!(!wanted.exists(), "{what}: {name} is refused and in place");
                Effect::Refused
            }
        }
    }

    /// What the sound repository answers: asked once for each name and caller.
    fn answer_when_sound(&self, caller: &Caller, name: &WalFileName) -> Answer {
        static KNOWN: std::sync::Mutex<BTreeMap<(bool, String), Answer>> = std::sync::Mutex::new(BTreeMap::new());
        let planned = matches!(caller, Caller::Recovery(Some(_)));
        let key = (planned, name.to_string());
        if let Some(answer) = KNOWN.lock().expect("nothing panics while it holds this lock").get(&key) {
            return *answer;
        }
        let lane = lane(&self.sound.site.repo).expect("it is whole");
        let budgets = FetchBudgets { hole: std::time::Duration::ZERO, standby_hole: std::time::Duration::ZERO };
        let place = Scratch::new();
        let answer = match Fetcher::new(&lane, caller.clone(), budgets).fetch(name, &place.join("RECOVERYXLOG")) {
            Ok(Fetched::InPlace) => Answer::InPlace,
            Ok(Fetched::ProvenAbsent(_)) => Answer::Absent,
            Err(_) => Answer::Refused,
        };
        KNOWN.lock().expect("nothing panics while it holds this lock").insert(key, answer);
        answer
    }

    /// Asks only for what the damaged object itself can change: quick enough for every byte.
    #[track_caller]
    fn judge_nearby(&self, key: &str, at: u64, what: &str) -> Effect {
        let (_, bytes, offset) = self.sound.locate(at);
        match kind_of(key) {
            "pack" => self.judge_frame(key, offset as u64, what),
            "WAL" => {
                let name = key.rsplit('/').next().expect("a key").trim_end_matches(".zst");
                let archived = self.sound.archived.iter().find(|(known, _)| known.to_string() == name);
                let fetched = archived.map_or(Effect::Harmless, |(name, bytes)| {
                    let plan = at.is_multiple_of(2).then(|| self.sound.recovery_plan.clone());
                    self.judge_fetch(&self.lane, Caller::Recovery(plan), name, bytes, what)
                });
                // A plan reads the hints at the objects' ends, and few objects whole.
                if offset + 4096 > bytes.len() || at.is_multiple_of(100) {
                    fetched.min(self.judge_plan(what))
                } else {
                    fetched
                }
            }
            _ => self.judge_plan(what),
        }
    }

    #[track_caller]
    fn judge_plan(&self, what: &str) -> Effect {
        match lane(&self.repo).and_then(|lane| planned(&lane)) {
            Ok(plan) => {
                assert!(format!("{plan:?}") == self.sound.plan, "{what}: another plan is made");
                match self.lane.tables(&plan.manifest) {
                    Ok(tables) => assert!(tables == self.tables, "{what}: other packs are named"),
                    Err(_) => return Effect::Refused,
                }
                Effect::Harmless
            }
            Err(_) => Effect::Refused,
        }
    }

    /// Reads the frame that holds the byte at `offset` of a pack, as a restore does.
    #[track_caller]
    fn judge_frame(&self, key: &str, offset: u64, what: &str) -> Effect {
        let number = key.rsplit('/').next().and_then(|name| name.trim_end_matches(".zst").parse::<u32>().ok());
        let place = number.expect("a pack's key ends in its number") - 1;
        let reference = self.tables.packs.get(place).expect("it is the only backup");
        let Ok(pack) = self.lane.open_pack(reference) else { return Effect::Refused };
        let frames = 0..pack.table().len() as u32;
        let holds = |frame: &u32| {
            let frame = pack.frame(*frame).expect("it is in the table");
            (frame.at..frame.at + u64::from(frame.stored_len)).contains(&offset)
        };
        let Some(frame) = frames.into_iter().find(holds) else {
            assert!(offset < 256, "{what}: the table was changed, and is believed");
            return Effect::Harmless;
        };
        let read = pack.read(frame, frame).and_then(|stored| pack.decode(&stored, frame, frame, &mut Vec::new()));
        assert!(read.is_err(), "{what}: the frame was changed, and is believed");
        Effect::Refused
    }
}

/// What the whole repository answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    InPlace,
    Absent,
    Refused,
}

/// What an object is, by its key.
fn kind_of(key: &str) -> &'static str {
    for (part, kind) in [
        ("/packs/", "pack"),
        ("/backups/", "manifest"),
        ("/owners/", "owner"),
        (".history", "history"),
        ("/wal/", "WAL"),
        ("/leases/", "lease"),
    ] {
        if key.contains(part) {
            return kind;
        }
    }
    if key.ends_with("lane.json") { "lane.json" } else { "repository.json" }
}

/// How often each kind of object was harmed and what became of it.
#[derive(Debug, Default)]
struct Tally(BTreeMap<(String, Effect), u64>);

impl Tally {
    #[allow(clippy::print_stderr, reason = "the test run shows the counts")]
    fn print(&self, what: &str) {
        let counts: Vec<String> =
            self.0.iter().map(|((kind, effect), count)| format!("{kind} {effect:?} {count}").to_lowercase()).collect();
        eprintln!("{what}: {}", counts.join(", "));
    }
}

/// The kinds with objects of their own get their share, however few bytes they have.
fn anywhere(sound: &Sound, chance: &Chance, kind: Option<&str>) -> u64 {
    let mut start = 0;
    let mut ranges = Vec::new();
    for (key, bytes) in &sound.objects {
        let end = start + bytes.len() as u64;
        if kind.is_none_or(|kind| kind_of(key) == kind) {
            ranges.push(start..end);
        }
        start = end;
    }
    let range = chance.pick(&ranges);
    range.start + chance.below(range.end - range.start)
}

#[test]
fn a_damaged_repository_restores_and_serves_the_same_or_nothing() {
    let (sound, chance) = (Sound::get(), Chance::new());
    let bench = Bench::new(sound);
    let mut tally = Tally::default();
    let kinds = ["repository.json", "lane.json", "owner", "manifest", "history", "WAL", "pack"];
    for number in 0..if soaking() { 5000 } else { 28 } {
        let kind = kinds[number % kinds.len()];
        let at = anywhere(sound, &chance, Some(kind));
        let cut = number / kinds.len() % 2 == 1;
        let what = format!("{} {}", if cut { "cut at" } else { "flipped at" }, at);
        let (kind, effect) = bench.harmed(at, cut, |key| bench.judge_whole(&format!("{key} {what}")));
        *tally.0.entry((kind, effect)).or_default() += 1;
    }
    tally.print("flips and cuts, judged by restore and every fetch");
    // A pack may hold nothing but names of relations, which no restore reads.
    for kind in ["repository.json", "lane.json", "manifest", "history", "WAL"] {
        assert!(tally.0.contains_key(&(kind.to_owned(), Effect::Refused)), "no damage to {kind} was felt: {tally:?}");
    }
    assert!(!tally.0.contains_key(&("owner".to_owned(), Effect::Refused)), "an owner is for people: {tally:?}");
}

#[test]
fn every_byte_and_every_length_of_a_repository_counts() {
    let (sound, chance) = (Sound::get(), Chance::new());
    let (bytes, workers) = (sound.bytes(), if soaking() { 2 } else { 1 });
    // Whole in the long run. In the short one a few, so that the long one is known to work.
    let points: Vec<u64> =
        if soaking() { (0..bytes).collect() } else { (0..200).map(|_| anywhere(sound, &chance, None)).collect() };
    let tallies = std::thread::scope(|scope| {
        let work = |points: Vec<u64>| {
            let bench = Bench::new(sound);
            let mut tally = Tally::default();
            for at in points {
                for cut in [false, true] {
                    let what = format!("{} {at}", if cut { "cut at" } else { "flipped at" });
                    let judged = bench.harmed(at, cut, |key| bench.judge_nearby(key, at, &format!("{key} {what}")));
                    *tally.0.entry(judged).or_default() += 1;
                }
            }
            tally
        };
        let share = points.len().div_ceil(workers);
        let threads: Vec<_> = points
            .chunks(share)
            .map(|points| (points.to_vec(), work))
            .map(|(p, w)| scope.spawn(move || w(p)))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no damage is believed")).collect::<Vec<_>>()
    });
    let mut all = Tally::default();
    for (judged, count) in tallies.into_iter().flat_map(|tally| tally.0) {
        *all.0.entry(judged).or_default() += count;
    }
    all.print(&format!("flips and cuts of {bytes} bytes"));
    assert!(all.0.contains_key(&("pack".to_owned(), Effect::Refused)), "no damage to a pack was felt: {all:?}");
}

#[test]
fn the_program_itself_refuses_a_damaged_repository() {
    let (sound, chance) = (Sound::get(), Chance::new());
    let bench = Bench::new(sound);
    let calls = Walvault::on(&bench.repo).env("WALVAULT_HOLE_TIMEOUT", "0");
    let data = bench.data();
    let target = ["--to-latest", "--as", "clone"];
    for number in 0..if soaking() { 500 } else { 12 } {
        let kind = *chance.pick(&["repository.json", "lane.json", "manifest", "history", "WAL", "pack"]);
        let at = anywhere(sound, &chance, Some(kind));
        bench.harmed(at, number % 2 == 0, |key| {
            drop(fs::remove_dir_all(&data));
            let words = [OsStr::new("restore"), data.as_os_str()];
            let restored = calls.run(words.into_iter().chain(target.iter().map(OsStr::new)));
            let startable = data.join("global/pg_control").exists();
            let story = format!("{key}, byte {at}\n{}", restored.story());
            assert_eq!(restored.is_ok(), startable, "{story}");
            assert!(restored.is_ok() || restored.stderr.contains("error: "), "{story}");
            assert!(restored.code.is_some_and(|code| [0, 1, 2, 3, 78].contains(&code)), "{story}");
            let name = key.rsplit('/').next().expect("a key").trim_end_matches(".zst");
            if startable && name.parse::<WalFileName>().is_ok_and(|name| name.timeline().is_some()) {
                let fetch = calls.clone().in_directory(&data).run(["wal", "fetch", name, "pg_wal/RECOVERYXLOG"]);
                assert!(fetch.is_ok() || fetch.code.is_some_and(|code| code > 125), "{}", fetch.story());
            }
            Effect::Refused
        });
    }
}
