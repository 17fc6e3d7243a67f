//! Command lines and settings as they are typed: quoted where their reader needs it.

/// Returns the three lines by which a server archives and recovers; `globals` go before the command, with a blank.
pub fn archiving_lines(program: &str, globals: &str) -> Vec<String> {
    let command = |rest: &str| quoted(&format!("{}{globals} {rest}", shell_word(program).replace('%', "%%")));
    vec![
        "archive_mode = on".to_owned(),
        format!("archive_command = {}", command("wal push \"%p\"")),
        format!("restore_command = {}", command("wal fetch %f \"%p\"")),
    ]
}

/// Quotes a value for `postgresql.conf`.
pub(super) fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// Quotes a word for the shell, if it needs that.
pub(super) fn shell_word(word: &str) -> String {
    let plain = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+=:@,".contains(c));
    if plain { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_for_the_server_survive_any_path() {
        let lines = archiving_lines("/usr/bin/walvault", " --cluster main");
        assert_eq!(lines[1], "archive_command = '/usr/bin/walvault --cluster main wal push \"%p\"'");
        assert_eq!(lines[2], "restore_command = '/usr/bin/walvault --cluster main wal fetch %f \"%p\"'");
        let odd = archiving_lines("/tmp/o'clock 5%/walvault", "");
        assert_eq!(odd[1], r#"archive_command = '''/tmp/o''\\''''clock 5%%/walvault'' wal push "%p"'"#);
    }
}
