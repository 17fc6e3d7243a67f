//! Pieces of HTML: text that is only text, and tables that read well on a phone and to a screen reader.

/// Returns text as it may stand between tags and in attributes; control characters are replaced.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Marks that turn the direction of text could make one name look like another.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => out.push('\u{fffd}'),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Returns bytes in base64, as a policy names a script by its digest.
///
/// Source: RFC 4648, section 4.
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * place) & 63) as usize];
            out.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

/// A table under a heading.
pub struct Table<'a> {
    title: &'a str,
    columns: &'a [&'a str],
    rows: String,
}

impl<'a> Table<'a> {
    pub fn new(title: &'a str, columns: &'a [&'a str]) -> Self {
        Self { title, columns, rows: String::new() }
    }

    /// Adds a row of texts.
    pub fn row(&mut self, cells: &[String]) {
        self.rows.push_str("<tr>");
        for (column, cell) in self.columns.iter().zip(cells) {
            self.rows.push_str(&format!("<td data-label=\"{column}\">{}</td>", escaped(cell)));
        }
        self.rows.push_str("</tr>\n");
    }

    /// Returns the table, or a sentence if it has no rows.
    pub fn html(self, empty: &str) -> String {
        let Self { title, columns, rows } = self;
        if rows.is_empty() {
            return format!("<h3>{title}</h3>\n<p>{empty}</p>\n");
        }
        let heads: String = columns.iter().map(|column| format!("<th scope=\"col\">{column}</th>")).collect();
        format!("<h3>{title}</h3>\n<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_somebody_typed_is_only_text() {
        let typed = "<script>alert('x')</script> & \"y\"\u{202e}\u{7}é";
        let text = escaped(typed);
        assert_eq!(text, "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &quot;y&quot;\u{fffd}\u{fffd}é");
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
