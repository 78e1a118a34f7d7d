//! Quoting of identifiers and string literals, the only way either gets into a statement.

/// Quotes a name (database, table, column, user) with backticks, so that it means exactly this name whatever it holds.
///
/// ClickHouse itself refuses a name with a NUL byte; it is escaped here like any other control character.
pub fn quote_identifier(name: &str) -> String {
    quote(name, '`')
}

/// Quotes a name only where ClickHouse would: names of letters, digits and underscores stay bare.
pub fn quote_identifier_if_needed(name: &str) -> String {
    if is_plain_identifier(name) {
        name.to_owned()
    } else {
        quote_identifier(name)
    }
}

/// Quotes a string literal with single quotes.
pub fn quote_string(text: &str) -> String {
    quote(text, '\'')
}

fn quote(text: &str, quote: char) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push(quote);
    for c in text.chars() {
        match c {
            '\\' => quoted.push_str("\\\\"),
            '\0' => quoted.push_str("\\0"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c == quote => {
                quoted.push('\\');
                quoted.push(c);
            }
            c => quoted.push(c),
        }
    }
    quoted.push(quote);
    quoted
}

/// Letters, digits and underscores, not starting with a digit. Words that ClickHouse's lexer takes for a literal stay
/// quoted.
fn is_plain_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    let starts_well = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    starts_well
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !["distinct", "all", "table", "null", "select", "from"]
            .iter()
            .any(|word| name.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_keep_their_meaning() {
        assert_eq!(quote_identifier("events"), "`events`");
        assert_eq!(quote_identifier("a`; DROP TABLE x--"), r"`a\`; DROP TABLE x--`");
        assert_eq!(quote_identifier(r"back\slash"), r"`back\\slash`");
        assert_eq!(quote_identifier("new\nline\0"), r"`new\nline\0`");
        assert_eq!(quote_identifier_if_needed("plain_1"), "plain_1");
        assert_eq!(quote_identifier_if_needed("1st"), "`1st`");
        assert_eq!(quote_identifier_if_needed("n.a"), "`n.a`");
    }

    #[test]
    fn strings_keep_their_meaning() {
        assert_eq!(quote_string("it's"), r"'it\'s'");
        assert_eq!(quote_string("`\\\t"), r"'`\\\t'");
    }
}
