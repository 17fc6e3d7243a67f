//! One line for people and monitors, as the Nagios plugin guidelines lay it out: words, a bar, numbers.

use serde_json::{Value, json};

use crate::workflow::check::Level;
use crate::workflow::status::Measure;

/// Returns the level of all measures together.
pub fn level(measures: &[Measure]) -> Level {
    let levels = measures.iter().map(|measure| measure.level).filter(|level| *level != Level::NotChecked);
    levels.max().unwrap_or(Level::NotChecked)
}

/// Returns the word that monitors look for.
pub const fn word(level: Level) -> &'static str {
    match level {
        Level::Ok => "OK",
        Level::Warn => "WARNING",
        Level::Fail => "CRITICAL",
        Level::NotChecked => "UNKNOWN",
    }
}

/// Returns the line: what is worst comes first.
pub fn text(measures: &[Measure]) -> String {
    let mut ordered: Vec<&Measure> = measures.iter().filter(|measure| measure.level != Level::NotChecked).collect();
    ordered.sort_by_key(|measure| std::cmp::Reverse(measure.level));
    let words: Vec<&str> = ordered.iter().map(|measure| measure.text.as_str()).collect();
    let numbers = measures.iter().filter_map(|measure| {
        let (value, threshold) = (measure.value?, measure.threshold);
        Some(format!("{}={value}{};{};{};0", measure.name, measure.unit, threshold.warn, threshold.fail))
    });
    let numbers: Vec<String> = numbers.collect();
    // A bar ends the words.
    let words = words.join(", ").replace('|', "/");
    format!("{}: {words} | {}\n", word(level(measures)), numbers.join(" "))
}

/// Returns the measures for programs.
pub fn json(measures: &[Measure]) -> Value {
    let each = measures.iter().map(|measure| {
        json!({
            "name": measure.name,
            "unit": measure.unit,
            "value": measure.value,
            "warn": measure.threshold.warn,
            "fail": measure.threshold.fail,
            "level": measure.level.as_str(),
            "text": measure.text,
        })
    });
    json!({ "level": level(measures).as_str(), "measures": each.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workflow::status::Threshold;

    #[test]
    fn the_line_is_one_that_monitors_read() {
        let threshold = Threshold { warn: 1, fail: 2 };
        let measure = |name, unit, value, level, text: &str| Measure {
            name,
            unit,
            value,
            threshold,
            level,
            text: text.to_owned(),
        };
        let measures = [
            measure("wal_age", "s", Some(1), Level::Ok, "WAL fine"),
            measure("backup_age", "s", None, Level::Fail, "no | backup"),
            measure("backlog", "", Some(2), Level::Warn, "2 waiting"),
        ];
        assert_eq!(text(&measures), "CRITICAL: no / backup, 2 waiting, WAL fine | wal_age=1s;1;2;0 backlog=2;1;2;0\n");
        assert_eq!(json(&measures)["level"], "fail");
    }
}
