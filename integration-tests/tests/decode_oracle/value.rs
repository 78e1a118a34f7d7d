//! A JSON text under construction: its tree is at hand for the predicates, its spelling is part of it.

use rand::{Rng as _, rngs::SmallRng};

/// A value as it will be written.
#[derive(Debug, Clone)]
pub(crate) enum Json {
    /// A scalar, or any text at all.
    Text(String),
    Array(Vec<Json>),
    /// Keys as they stand between the quotes.
    Object(Vec<(String, Json)>),
}

impl Json {
    pub(crate) fn text(text: impl Into<String>) -> Json {
        Json::Text(text.into())
    }

    /// The text without white space.
    pub(crate) fn compact(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, &mut || "");
        out
    }

    /// The text with white space here and there.
    pub(crate) fn spaced(&self, random: &mut SmallRng) -> String {
        let mut out = String::new();
        self.write(&mut out, &mut || match random.random_range(0..8) {
            0 => " ",
            1 => "\t",
            2 => "  \r ",
            _ => "",
        });
        out
    }

    fn write(&self, out: &mut String, space: &mut impl FnMut() -> &'static str) {
        match self {
            Json::Text(text) => out.push_str(text),
            Json::Array(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    out.push_str(if index == 0 { "" } else { "," });
                    out.push_str(space());
                    item.write(out, space);
                    out.push_str(space());
                }
                out.push_str(space());
                out.push(']');
            }
            Json::Object(fields) => {
                out.push('{');
                for (index, (key, value)) in fields.iter().enumerate() {
                    out.push_str(if index == 0 { "" } else { "," });
                    out.push_str(space());
                    out.push_str(&format!("\"{key}\""));
                    out.push_str(space());
                    out.push(':');
                    out.push_str(space());
                    value.write(out, space);
                    out.push_str(space());
                }
                out.push_str(space());
                out.push('}');
            }
        }
    }
}

/// The text in quotes, with the escapes that JSON needs.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The first character of a key as an escape: the same key in JSON.
pub(crate) fn escaped(key: &str) -> String {
    let mut chars = key.chars();
    match chars.next() {
        Some(first) if first.is_ascii_alphanumeric() => format!("\\u{:04x}{}", u32::from(first), chars.as_str()),
        _ => key.to_owned(),
    }
}

/// What stands between the quotes, without escapes; `None` for what is no string.
pub(crate) fn unquoted(text: &str) -> Option<String> {
    serde_json::from_str(text).ok()
}
