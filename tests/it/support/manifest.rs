//! What `deploy/` holds: manifests of Kubernetes as Kubernetes reads them, and the command lines written in them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::major::cache;

/// Where manifests put the program.
pub const PROGRAM: &str = "/opt/walvault/walvault";

/// Returns the path of a file of `deploy/`.
pub fn deployed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

/// Returns the files of a folder of `deploy/`, sorted.
pub fn files_in(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(deployed(folder)).unwrap_or_else(|error| panic!("list {folder}: {error}"));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

/// Returns the documents of manifests if Kubernetes' own schemas take every one, and otherwise all that is wrong.
pub fn read(files: &[PathBuf]) -> Result<Vec<Value>, String> {
    let schemas = cache().join("kubernetes");
    assert!(schemas.is_dir(), "{schemas:?} is not there: run tests/pg/install.sh test");
    let check = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/deploy/manifests.py");
    let output = Command::new("/usr/bin/python3").arg(check).arg(schemas).args(files).output().expect("python3 runs");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(serde_json::from_slice(&output.stdout).expect("the check prints JSON"))
}

/// Returns the documents of a manifest of `deploy/kubernetes`.
#[track_caller]
pub fn manifest(name: &str) -> Vec<Value> {
    read(&[deployed("kubernetes").join(name)]).unwrap_or_else(|wrong| panic!("{wrong}"))
}

/// Returns the document of this kind and name.
#[track_caller]
pub fn find<'a>(documents: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = documents.iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// Returns what a document runs in pods, if it does.
pub fn pod(document: &Value) -> Option<&Value> {
    let spec = &document["spec"];
    spec["template"].get("spec").or_else(|| spec["jobTemplate"]["spec"]["template"].get("spec"))
}

/// Returns a pod's containers, those that run first before the others.
pub fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"].into_iter().filter_map(|kind| pod[kind].as_array()).flatten()
}

/// Returns the one container of this name.
#[track_caller]
pub fn container<'a>(document: &'a Value, name: &str) -> &'a Value {
    let pod = pod(document).expect("a document with pods");
    containers(pod).find(|one| one["name"] == name).unwrap_or_else(|| panic!("no container {name}"))
}

/// Returns a list of texts.
pub fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

/// Returns every command line of walvault in a manifest's documents, without the program itself.
pub fn command_lines(documents: &[Value]) -> Vec<Vec<String>> {
    let mut lines = Vec::new();
    for container in documents.iter().filter_map(pod).flat_map(containers) {
        if container["image"].as_str().is_some_and(|image| image.starts_with("walvault:")) {
            lines.push(texts(&container["args"]));
        }
    }
    documents.iter().for_each(|document| collect(document, &mut lines));
    lines
}

fn collect(value: &Value, lines: &mut Vec<Vec<String>>) {
    match value {
        Value::String(text) => lines.extend(command_lines_in(text, PROGRAM)),
        Value::Array(values) => values.iter().for_each(|value| collect(value, lines)),
        Value::Object(members) => members.values().for_each(|value| collect(value, lines)),
        _ => {}
    }
}

/// Returns every command line of `program` in a script, a configuration or a document.
pub fn command_lines_in(text: &str, program: &str) -> Vec<Vec<String>> {
    let text = text.replace("\\\n", " ");
    let calls = text.lines().filter_map(|line| line.split_once(&format!("{program} ")));
    calls.map(|(before, rest)| words(rest, before.trim_end().ends_with(['\'', '`']))).collect()
}

/// Splits words as a shell does, up to what closes the quotation that the line stands in.
fn words(line: &str, quoted: bool) -> Vec<String> {
    let (mut words, mut word, mut within) = (Vec::new(), None::<String>, false);
    for letter in line.chars() {
        match letter {
            '\'' | '`' if quoted => break,
            '"' => {
                within = !within;
                word.get_or_insert_default();
            }
            ' ' if !within => words.extend(word.take()),
            ')' | '&' | ';' if !within => break,
            letter => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}
