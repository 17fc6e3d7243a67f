//! Findings: what wants mending first, and the rest in a few lines.

use serde_json::{Value, json};

use crate::workflow::check::{Area, Finding, Level, worst};

/// Width of what stands before a text.
const MARGIN: usize = 6;
/// Narrowest column that text is wrapped into.
const LEAST: usize = 40;

/// Returns findings for people; `width` is the terminal's, and none wraps nothing. With `every`, each sound finding has a
/// line of its own.
pub fn text(findings: &[Finding], width: Option<usize>, every: bool) -> String {
    let mut text = String::new();
    for level in [Level::Fail, Level::Warn] {
        for finding in findings.iter().filter(|finding| finding.level == level) {
            text.push_str(&line(mark(level), &format!("{}: {}", finding.code, finding.text), width));
            if let Some(mend) = &finding.mend {
                text.push_str(&line("   ->", mend, width));
            }
        }
    }
    let mut sound: Vec<&Finding> = findings.iter().filter(|finding| finding.level == Level::Ok).collect();
    sound.sort_by_key(|finding| finding.code.area());
    if every {
        let lines =
            sound.iter().map(|finding| line(mark(Level::Ok), &format!("{}: {}", finding.code, finding.text), width));
        text.extend(lines);
    } else {
        text.extend(sound.chunk_by(|one, other| one.code.area() == other.code.area()).map(|area| {
            let texts: Vec<&str> = area.iter().map(|finding| finding.text.as_str()).collect();
            line(mark(Level::Ok), &format!("{}: {}", area[0].code.area().as_str(), texts.join("; ")), width)
        }));
    }
    text.push_str(&not_checked(findings, width));
    text.push_str(&summary(findings));
    text
}

fn mark(level: Level) -> &'static str {
    match level {
        Level::Ok => "OK",
        Level::NotChecked => "--",
        Level::Warn => "WARN",
        Level::Fail => "FAIL",
    }
}

/// One line for each reason.
fn not_checked(findings: &[Finding], width: Option<usize>) -> String {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for finding in findings.iter().filter(|finding| finding.level == Level::NotChecked) {
        // The same reason for several things, each with its own name before it.
        let reason = finding.text.rsplit(": ").next().unwrap_or(&finding.text);
        match reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, codes)) => codes.push(finding.code.as_str()),
            None => reasons.push((reason, vec![finding.code.as_str()])),
        }
    }
    let lines = reasons.iter().map(|(reason, codes)| {
        line(mark(Level::NotChecked), &format!("not checked ({reason}): {}", codes.join(", ")), width)
    });
    lines.collect()
}

fn summary(findings: &[Finding]) -> String {
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (fails, warns, skipped) = (count(Level::Fail), count(Level::Warn), count(Level::NotChecked));
    let sound = match (fails, warns) {
        (0, 0) => "all is well".to_owned(),
        (fails, warns) => {
            let parts = [(fails, "failed"), (warns, "to be mended")];
            let parts: Vec<String> =
                parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
            parts.join(", ")
        }
    };
    match skipped {
        0 => format!("{sound}; {} ok\n", count(Level::Ok)),
        skipped => format!("{sound}; {} ok, {skipped} not checked\n", count(Level::Ok)),
    }
}

/// One finding, wrapped under its own margin.
fn line(mark: &str, text: &str, width: Option<usize>) -> String {
    let room = width.map_or(usize::MAX, |width| width.saturating_sub(MARGIN).max(LEAST));
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last_mut().expect("never empty");
        if !last.is_empty() && last.chars().count() + 1 + word.chars().count() > room {
            lines.push(word.to_owned());
        } else {
            if !last.is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    let margin = " ".repeat(MARGIN);
    format!("{mark:<MARGIN$}{}\n", lines.join(&format!("\n{margin}")))
}

/// Returns findings for programs.
pub fn json(findings: &[Finding]) -> Value {
    let each = findings.iter().map(|finding| {
        json!({
            "code": finding.code.as_str(),
            "area": Area::as_str(finding.code.area()),
            "level": finding.level.as_str(),
            "text": finding.text,
            "mend": finding.mend,
        })
    });
    json!({
        "walvault": env!("CARGO_PKG_VERSION"),
        "level": worst(findings).as_str(),
        "findings": each.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workflow::check::Code;

    fn finding(code: Code, level: Level, text: &str, mend: Option<&str>) -> Finding {
        Finding { code, level, text: text.to_owned(), mend: mend.map(str::to_owned) }
    }

    fn some() -> Vec<Finding> {
        vec![
            finding(Code::Config, Level::Ok, "settings of main.toml", None),
            finding(Code::Server, Level::Ok, "PostgreSQL 17.10", None),
            finding(Code::Pooler, Level::Ok, "no pooler between", None),
            finding(Code::Fsync, Level::Warn, "fsync = off: a crash can lose data", Some("set fsync = on and reload")),
            finding(Code::Owner, Level::NotChecked, "the repository does not open", None),
            finding(Code::Lane, Level::NotChecked, "the repository does not open", None),
            finding(Code::Repository, Level::Fail, "no such directory", Some("mount it")),
        ]
    }

    #[test]
    fn what_wants_mending_comes_first() {
        let expected = "\
FAIL  repository: no such directory
   -> mount it
WARN  fsync: fsync = off: a crash can lose data
   -> set fsync = on and reload
OK    program: settings of main.toml
OK    server: PostgreSQL 17.10; no pooler between
--    not checked (the repository does not open): owner, lane
1 failed, 1 to be mended; 3 ok, 2 not checked
";
        assert_eq!(text(&some(), None, false), expected);
        assert!(text(&some(), None, true).contains("OK    pooler: no pooler between\n"));
        assert!(text(&[], Some(80), false).starts_with("all is well"));
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let long = finding(Code::Fsync, Level::Warn, &"words ".repeat(60), Some(&"more ".repeat(60)));
        for width in [46, 80, 120] {
            let shown = text(std::slice::from_ref(&long), Some(width), false);
            assert!(shown.lines().all(|line| line.chars().count() <= width), "{shown}");
            assert!(shown.lines().nth(1).is_some_and(|line| line.starts_with("      words")), "{shown}");
        }
    }

    #[test]
    fn programs_get_every_finding() {
        let value = json(&some());
        assert_eq!(value["level"], "fail");
        assert_eq!(value["findings"].as_array().map(Vec::len), Some(7));
        assert_eq!(value["findings"][6]["mend"], "mount it");
        assert_eq!(value["findings"][0]["mend"], Value::Null);
    }
}
