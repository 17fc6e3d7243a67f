//! What `deploy/` shows is what Kubernetes, systemd, PostgreSQL and walvault itself take.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use ::walvault::config::KEYS;
use serde_json::Value;

use crate::support::manifest::{
    PROGRAM, command_lines, command_lines_in, container, containers, deployed, files_in, find, manifest, pod, read,
    texts,
};
use crate::support::process::{Outcome, command, run};
use crate::support::{Major, Scratch, Stop, TestRepo, TestServer, walvault};

/// Lines that end like this are left out for a repository in a bucket.
const VOLUME_ONLY: &str = "# repository on a volume";

const SERVERS: [&str; 3] = ["postgresql-volume.yaml", "postgresql-s3.yaml", "postgresql-gcs.yaml"];

fn without_volume(text: &str) -> String {
    text.lines().filter(|line| !line.ends_with(VOLUME_ONLY)).map(|line| format!("{line}\n")).collect()
}

fn changed(file: &Path, place: &Path, change: impl Fn(&str) -> String) {
    let text = fs::read_to_string(file).expect("a manifest");
    let text_changed = change(&text);
    assert_ne!(text, text_changed, "nothing was changed in {file:?}");
    fs::write(place, text_changed).expect("a directory of ours");
}

#[test]
fn kubernetes_takes_every_manifest() {
    let files = files_in("kubernetes");
    assert_eq!(files.len(), 6);
    let documents = read(&files).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert!(documents.len() > files.len());
    for name in ["restore-job.yaml", "replica.yaml", "backup-cronjob.yaml"] {
        let place = Scratch::new();
        changed(&deployed("kubernetes").join(name), &place.join(name), without_volume);
        let documents = read(&[place.join(name)]).unwrap_or_else(|wrong| panic!("{wrong}"));
        assert!(!Value::from(documents).to_string().contains("repository"), "{name} for a bucket needs no volume");
    }
}

#[test]
fn a_misspelt_or_repeated_field_is_found_in_every_manifest() {
    type Change = fn(&str) -> String;
    let changes: [(&str, Change); 6] = [
        ("'readonlyRootFilesystem' was unexpected", |text| {
            text.replacen("readOnlyRootFilesystem", "readonlyRootFilesystem", 1)
        }),
        ("'mountpath' was unexpected", |text| text.replacen("mountPath", "mountpath", 1)),
        ("'annotation' was unexpected", |text| text.replacen("\n  name:", "\n  annotation: {}\n  name:", 1)),
        ("is not of type 'boolean'", |text| text.replacen("Escalation: false", "Escalation: 'false'", 1)),
        ("spec is written twice", |text| text.replacen("\nspec:\n", "\nspec: {}\nspec:\n", 1)),
        ("no such kind", |text| text.replacen("\napiVersion: ", "\napiVersion: beta/", 1)),
    ];
    let place = Scratch::new();
    let (mut files, mut expected) = (Vec::new(), Vec::new());
    for file in files_in("kubernetes") {
        for (said, change) in changes {
            let wrong = place.join(&format!("{}.yaml", files.len()));
            changed(&file, &wrong, change);
            expected.push((wrong.clone(), said));
            files.push(wrong);
        }
    }
    let said = read(&files).expect_err("all of them are wrong");
    for (file, expected) in expected {
        let of_file = |line: &&str| line.starts_with(&format!("{}: ", file.display()));
        let found: Vec<&str> = said.lines().filter(of_file).collect();
        assert!(found.iter().any(|line| line.contains(expected)), "{expected:?} was expected: {found:?}");
    }
}

#[test]
fn every_image_of_walvault_has_the_version_of_these_manifests() {
    let expected = format!("walvault:{}", env!("CARGO_PKG_VERSION"));
    let mut images = 0;
    for file in files_in("kubernetes") {
        let text = fs::read_to_string(&file).expect("a file of ours");
        for image in text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("image: ")) {
            if image.contains("walvault") {
                assert_eq!(image, expected, "{file:?}: raise it with Cargo.toml's version");
                images += 1;
            }
        }
    }
    assert!(images >= 9, "{images} images of walvault");
}

#[test]
fn servers_differ_by_their_repository_alone() {
    let common = |name: &str| {
        let mut server = find(&manifest(name), "StatefulSet", "postgresql").clone();
        let pod = &mut server["spec"]["template"]["spec"];
        let of_repository = |one: &Value| one["name"] == "repository" || one["name"] == "credentials";
        let of_keys = |one: &Value| one["secretRef"]["name"] == "walvault";
        pod["volumes"].as_array_mut().expect("volumes").retain(|one| !of_repository(one));
        let container = &mut pod["containers"][0];
        container["volumeMounts"].as_array_mut().expect("mounts").retain(|one| !of_repository(one));
        container["envFrom"].as_array_mut().expect("sources").retain(|one| !of_keys(one));
        server
    };
    let [volume, s3, gcs] = SERVERS.map(common);
    assert_eq!(volume, s3);
    assert_eq!(volume, gcs);
}

#[test]
fn the_daily_and_the_full_backup_differ_by_their_day_and_one_word() {
    let documents = manifest("backup-cronjob.yaml");
    let of = |name: &str| {
        let mut job = find(&documents, "CronJob", name).clone();
        let schedule = job["spec"]["schedule"].take();
        job["metadata"]["name"].take();
        let pod = &mut job["spec"]["jobTemplate"]["spec"]["template"]["spec"];
        let arguments = texts(&pod["containers"][0]["args"].take());
        (job, schedule, arguments)
    };
    let ((daily, days, arguments), (full, sunday, fully)) = (of("walvault-backup"), of("walvault-backup-full"));
    assert_eq!(daily, full);
    assert_eq!((days, sunday), (Value::from("30 1 * * 1-6"), Value::from("30 1 * * 0")), "never at one time");
    let without_full: Vec<String> = fully.into_iter().filter(|word| word != "--full").collect();
    assert!(arguments.len() == without_full.len() && arguments == without_full, "{arguments:?}");
    // An account of its own, for either cloud, and no token of the API's.
    let account = find(&documents, "ServiceAccount", "walvault-backup");
    let pod = pod(find(&documents, "CronJob", "walvault-backup")).expect("it has pods");
    assert_eq!(pod["serviceAccountName"], "walvault-backup");
    for cloud in ["eks.amazonaws.com/role-arn", "iam.gke.io/gcp-service-account"] {
        assert!(account["metadata"]["annotations"][cloud].is_string(), "{account:#}");
    }
    // The exit codes that do not mend themselves, and the one of a lease that another holds.
    let rules = daily["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"].as_array().expect("rules");
    let codes = |action: &str| {
        let rule = rules.iter().find(|rule| rule["action"] == action && rule.get("onExitCodes").is_some());
        rule.map(|rule| rule["onExitCodes"]["values"].clone())
    };
    use ::walvault::cli::exit::{Fault, Role, failure};
    let code = |fault| Value::from(failure(Role::Backup, fault));
    assert_eq!(codes("FailJob"), Some(Value::from(vec![code(Fault::Usage), code(Fault::Configuration)])));
    assert_eq!(codes("Ignore"), Some(Value::from(vec![code(Fault::LeaseHeld)])));
    let message = &container(find(&documents, "CronJob", "walvault-backup"), "backup")["terminationMessagePolicy"];
    assert_eq!(message, "FallbackToLogsOnError");
}

#[test]
fn every_pod_keeps_to_the_restricted_standard() {
    let mut pods = 0;
    for document in read(&files_in("kubernetes")).expect("checked above") {
        let Some(pod) = pod(&document) else { continue };
        pods += 1;
        let context = &pod["securityContext"];
        assert_eq!(context["runAsNonRoot"], true, "{document:#}");
        assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(pod["automountServiceAccountToken"], false);
        for container in containers(pod) {
            let context = &container["securityContext"];
            assert_eq!(context["allowPrivilegeEscalation"], false, "{container:#}");
            assert_eq!(context["readOnlyRootFilesystem"], true, "{container:#}");
            assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]), "{container:#}");
            assert!(context["capabilities"].get("add").is_none() && context.get("privileged").is_none());
            assert!(container["resources"]["limits"].get("memory").is_some(), "{container:#}");
            let unknown = |mount: &&Value| {
                let names = [&pod["volumes"], &document["spec"]["volumeClaimTemplates"]];
                let volumes = || names.iter().filter_map(|list| list.as_array()).flatten();
                !volumes().any(|one| one["name"] == mount["name"] || one["metadata"]["name"] == mount["name"])
            };
            let mounts = container["volumeMounts"].as_array().into_iter().flatten();
            assert_eq!(mounts.clone().find(unknown), None, "a mount without its volume");
        }
        for volume in pod["volumes"].as_array().into_iter().flatten() {
            let kinds = ["emptyDir", "configMap", "secret", "persistentVolumeClaim"];
            assert!(kinds.iter().any(|kind| volume.get(*kind).is_some()), "{volume:#}");
        }
    }
    assert_eq!(pods, 10);
}

#[test]
fn every_server_keeps_what_tells_it_from_others_on_a_volume_that_outlives_the_pod() {
    let default = KEYS.iter().find(|key| key.name == "state_dir").expect("a setting").default;
    let mounted = |container: &Value| {
        let mounts = container["volumeMounts"].as_array().expect("mounts").clone();
        mounts.into_iter().find(|mount| mount["mountPath"] == default).expect("a state directory")["name"].clone()
    };
    for (name, set) in
        SERVERS.map(|name| (name, "postgresql")).into_iter().chain([("replica.yaml", "postgresql-replica")])
    {
        let documents = manifest(name);
        let set = find(&documents, "StatefulSet", set);
        let volume = mounted(container(set, "postgresql"));
        let claims = set["spec"]["volumeClaimTemplates"].as_array().expect("claims");
        let names: Vec<&Value> = claims.iter().map(|claim| &claim["metadata"]["name"]).collect();
        assert!(names.contains(&&volume), "{name}: {volume} is no claim of its own");
        // What a snapshot of the data holds too tells no two servers apart.
        assert_eq!(names.len(), 2, "{name}");
    }
    let jobs = manifest("restore-job.yaml");
    let job = find(&jobs, "Job", "walvault-restore");
    let volume = mounted(container(job, "restore"));
    let volumes = job["spec"]["template"]["spec"]["volumes"].as_array().expect("volumes");
    let volume = volumes.iter().find(|one| one["name"] == volume).expect("its volume");
    assert_eq!(
        volume["persistentVolumeClaim"]["claimName"], "state-postgresql-0",
        "that of the server that takes over"
    );
}

#[track_caller]
fn expect_understood(line: &[String], of: &Path) {
    let words = std::iter::once("walvault".to_owned()).chain(line.iter().cloned());
    if let Err(error) = ::walvault::cli::definition().try_get_matches_from(words) {
        panic!("{of:?} calls walvault with {line:?}: {error}");
    }
}

#[test]
fn walvault_understands_every_command_line() {
    let mut verbs = BTreeMap::new();
    for file in files_in("kubernetes") {
        for line in command_lines(&read(std::slice::from_ref(&file)).expect("checked above")) {
            expect_understood(&line, &file);
            *verbs.entry(line[0].clone()).or_insert(0) += 1;
        }
        let comments = fs::read_to_string(&file).expect("a manifest");
        let comments: Vec<&str> = comments.lines().filter(|line| line.starts_with("# ")).collect();
        command_lines_in(&comments.join("\n"), PROGRAM).iter().for_each(|line| expect_understood(line, &file));
    }
    let expected = [("backup", 2), ("init", 3), ("install", 4), ("restore", 2), ("wal", 6)];
    assert_eq!(verbs, expected.map(|(verb, times)| (verb.to_owned(), times)).into());
    for folder in ["systemd", "container"] {
        for file in files_in(folder) {
            let text = fs::read_to_string(&file).expect("a file of ours");
            // They copy the program.
            let text: String =
                text.lines().filter(|line| !line.starts_with("COPY ")).map(|line| format!("{line}\n")).collect();
            for line in ["/usr/bin/walvault", PROGRAM].iter().flat_map(|program| command_lines_in(&text, program)) {
                expect_understood(&line, &file);
            }
        }
    }
    for (name, lines) in [("walvault-backup@.service", 1), ("walvault-backup-remote@.service", 2)] {
        let unit = fs::read_to_string(deployed("systemd").join(name)).expect("a unit");
        assert_eq!(command_lines_in(&unit, "/usr/bin/walvault").len(), lines, "{name}");
    }
    let misspelt = ["wal".to_owned(), "psuh".to_owned()];
    let words = std::iter::once("walvault".to_owned()).chain(misspelt);
    assert!(::walvault::cli::definition().try_get_matches_from(words).is_err());
}

#[test]
fn variables_are_settings_or_those_of_a_cloud() {
    const CLOUDS: [&str; 4] =
        ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "GOOGLE_APPLICATION_CREDENTIALS"];
    for file in ["kubernetes", "systemd", "container"].into_iter().flat_map(files_in) {
        let text = fs::read_to_string(&file).expect("a file of ours");
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|word| ["WALVAULT_", "AWS_", "GOOGLE_"].iter().any(|start| word.starts_with(start))) {
            let key = word.strip_prefix("WALVAULT_").map(str::to_ascii_lowercase);
            let known = key.is_some_and(|key| KEYS.iter().any(|known| known.name == key)) || CLOUDS.contains(&word);
            assert!(known, "{file:?} names {word}, which is no setting");
        }
    }
    for name in SERVERS {
        let documents = manifest(name);
        let settings = &find(&documents, "ConfigMap", "walvault")["data"];
        let place = settings["WALVAULT_REPO"].as_str().expect("a repository");
        assert!(["file:///", "s3://", "gs://"].iter().any(|form| place.starts_with(form)), "{place}");
    }
}

#[test]
fn systemd_takes_the_units_and_finds_them_tight() {
    let place = Scratch::new();
    let mut units = Vec::new();
    for file in files_in("systemd") {
        let text = fs::read_to_string(&file).expect("a unit");
        let program = walvault::binary().display().to_string();
        let unit = place.join(file.file_name().and_then(|name| name.to_str()).expect("a name"));
        fs::write(&unit, text.replace("/usr/bin/walvault", &program)).expect("a directory of ours");
        units.push(unit);
    }
    let analyze = |arguments: &[&str], units: &[std::path::PathBuf]| {
        let output = Command::new("/usr/bin/systemd-analyze").args(arguments).args(units).output();
        let output = output.expect("systemd-analyze runs");
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
        (output.status.success(), said)
    };
    let (taken, said) = analyze(&["verify", "--man=no"], &units);
    assert!(taken && !said.contains("walvault"), "{said}");
    let services = units.iter().filter(|unit| unit.extension().is_some_and(|extension| extension == "service"));
    for service in services {
        let (tight, said) = analyze(&["security", "--offline=true", "--threshold=25"], std::slice::from_ref(service));
        assert!(tight, "{said}");
    }
    let text = fs::read_to_string(&units[0]).expect("it was written");
    fs::write(&units[0], text.replace("NoNewPrivileges", "NoNewPriviledges")).expect("ours");
    let (_, said) = analyze(&["verify", "--man=no"], &units);
    assert!(said.contains("NoNewPriviledges"), "a misspelt key is found: {said}");
}

/// The volume's manifests as they stand, with only the places changed.
struct Pods {
    repo: TestRepo,
    environment: Vec<(String, String)>,
}

impl Pods {
    fn new() -> Self {
        let repo = TestRepo::new();
        let documents = manifest("postgresql-volume.yaml");
        let settings = find(&documents, "ConfigMap", "walvault")["data"].as_object().expect("settings").clone();
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let here = |value: &Value| text(value).replace("/repository", &repo.path().display().to_string());
        let environment = settings.iter().map(|(name, value)| (name.clone(), here(value))).collect();
        Self { repo, environment }
    }

    fn put(&self, text: &str, places: &[(&str, &str)]) -> String {
        let program = walvault::binary().display().to_string();
        let text = text.replace(PROGRAM, &program);
        places.iter().fold(text, |text, (shown, here)| text.replace(shown, here))
    }

    /// Runs what a container runs: its script, or the program with its arguments.
    fn run(&self, container: &Value, places: &[(&str, &str)], variables: &[(&str, &str)]) -> Outcome {
        let mut words = texts(&container["command"]);
        if words.is_empty() {
            words.push(PROGRAM.to_owned());
        }
        words.extend(texts(&container["args"]));
        let words: Vec<String> = words.iter().map(|word| self.put(word, places)).collect();
        let program = if words[0] == "sh" { "/bin/sh" } else { &words[0] };
        let mut own = command(program);
        own.args(&words[1..]).envs(self.environment.iter().map(|(name, value)| (name, value)));
        own.envs(variables.iter().copied());
        run(own)
    }
}

#[test]
fn the_volumes_manifests_archive_back_up_bring_up_a_replica_and_restore() {
    let pods = Pods::new();
    let documents = manifest("postgresql-volume.yaml");
    let mut server = TestServer::builder(Major::V17).segment_mib(1).create();
    let conf = &find(&documents, "ConfigMap", "postgresql")["data"]["postgresql.conf"];
    for line in conf.as_str().expect("a configuration").lines() {
        let (name, value) = line.split_once(" = ").expect("a setting and its value");
        // Places of the image.
        if name != "hba_file" && name != "listen_addresses" {
            server.set(name, &pods.put(value.trim_matches('\''), &[]));
        }
    }
    pods.environment.iter().for_each(|(name, value)| server.set_env(name, value));
    let init = container(find(&documents, "Job", "walvault-init"), "init");
    pods.run(init, &[], &[]).expect_ok();
    pods.run(init, &[], &[]).expect_ok();
    server.start();
    server.sql("create table accounts as select generate_series(1, 10) as balance");
    let mut backup = command(walvault::binary());
    backup.args(["backup", "--fast", "--dbname", &server.conninfo()]);
    backup.envs(pods.environment.iter().map(|(name, value)| (name, value)));
    run(backup).expect_ok();
    server.sql("insert into accounts values (11)");
    let moment = server.query_one("select now()");
    server.sql("drop table accounts");
    server.archive_all();

    let place = Scratch::new();
    let replicas = manifest("replica.yaml");
    let restore = container(find(&replicas, "StatefulSet", "postgresql-replica"), "restore");
    let data = place.join("main");
    let path = data.display().to_string();
    let variables = [("PGDATA", path.as_str()), ("HOSTNAME", "postgresql-replica-0")];
    pods.run(restore, &[], &variables).expect_ok();
    let mine = fs::read_to_string(data.join("postgresql.auto.conf")).expect("it is restored");
    assert!(mine.contains("host=postgresql user=replicator application_name=postgresql-replica-0"), "{mine}");
    assert!(data.join("standby.signal").exists());
    // The pod starts again: what is complete is left alone, what was interrupted is restored anew.
    fs::write(data.join("mine"), "").expect("a data directory");
    pods.run(restore, &[], &variables).expect_ok();
    assert!(data.join("mine").exists());
    fs::remove_file(data.join("global/pg_control")).expect("it is restored");
    pods.run(restore, &[], &variables).expect_ok();
    assert!(!data.join("mine").exists() && data.join("global/pg_control").exists());
    let mut standby = TestServer::over(Major::V17, &data);
    standby.start();
    standby.wait_until("select to_regclass('accounts') is null", "t");
    standby.stop(Stop::Fast);

    server.stop(Stop::Fast);
    let jobs = manifest("restore-job.yaml");
    let restored = place.join("restored").display().to_string();
    let job = container(find(&jobs, "Job", "walvault-restore"), "restore");
    let places = [("/var/lib/postgresql/data/restored", restored.as_str()), ("2026-11-21 14:30:00+01:00", &moment)];
    pods.run(job, &places, &[]).expect_ok();
    let mut copy = TestServer::over(Major::V17, Path::new(&restored));
    pods.environment.iter().for_each(|(name, value)| copy.set_env(name, value));
    copy.start();
    copy.wait_until_writable();
    assert_eq!(copy.sql("select count(*) from accounts"), "11");
    drop(pods.repo);
}
