//! Collecting everything that is wrong with a request, so that a user fixes it in one go.
//!
//! Invariant: what is reported fits in the trailers of any gRPC client (C-core stops at 8 KiB of metadata), because the
//! same text travels as the status message and, in base64, as its details.

use millrace_common::error::{ApiError, FieldViolation};

/// Bytes of field paths and descriptions that one error reports. Twice this, once in base64, stays under 8 KiB.
const REPORTED_BYTES: usize = 2_800;
/// Longest description of one violation.
const DESCRIPTION_CHARS: usize = 600;
/// How much of a user's own text is repeated to them.
const QUOTED_CHARS: usize = 100;

/// Violations found so far, within bounds.
#[derive(Debug, Default)]
pub struct Violations {
    found: Vec<FieldViolation>,
    bytes: usize,
    left_out: usize,
}

impl Violations {
    /// Nothing wrong so far.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one: what is wrong with a field, and what to do about it.
    pub fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        let (field, mut description): (String, String) = (field.into(), description.into());
        if description.chars().count() > DESCRIPTION_CHARS {
            description = description.chars().take(DESCRIPTION_CHARS).chain("…".chars()).collect();
        }
        let bytes = field.len() + description.len();
        if !self.found.is_empty() && self.bytes + bytes > REPORTED_BYTES {
            self.left_out += 1;
            return;
        }
        self.bytes += bytes;
        self.found.push(FieldViolation { field, description });
    }

    /// True if nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// The paths of the fields at fault, in the order in which they were found.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.found.iter().map(|violation| violation.field.as_str())
    }

    /// INVALID_ARGUMENT with all of them, if there are any.
    ///
    /// # Errors
    /// If something is wrong.
    pub fn finish(mut self) -> Result<(), ApiError> {
        let Some(last) = self.found.last_mut() else {
            return Ok(());
        };
        if self.left_out > 0 {
            last.description
                .push_str(&format!(" (and {} more violations)", self.left_out));
        }
        Err(ApiError::invalid_fields(self.found))
    }
}

/// A user's own text, quoted for a message: cut, and with control characters escaped.
#[must_use]
pub fn quoted(text: &str) -> String {
    let cut: String = text.chars().take(QUOTED_CHARS).collect();
    let more = if cut.len() < text.len() { "…" } else { "" };
    format!("{cut:?}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_reported_within_bounds() {
        let mut violations = Violations::new();
        for index in 0..100_000 {
            violations.add(
                format!("pipe.destination.columns[{index}].type"),
                "is not a type".repeat(100),
            );
        }
        let error = violations.finish().unwrap_err();
        assert!(error.message.len() < 4_000, "{}", error.message.len());
        assert!(error.message.contains("more violations"), "{}", error.message);
        assert!(error.fields.len() > 1);
    }

    #[test]
    fn quoting_cuts_and_escapes() {
        assert_eq!(quoted("a\nb\u{202e}"), r#""a\nb\u{202e}""#);
        assert_eq!(quoted(&"x".repeat(65_536)).chars().count(), QUOTED_CHARS + 3);
    }
}
