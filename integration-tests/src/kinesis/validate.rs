//! Constraints on request fields, collected and worded as the service does: all violations in one ValidationException.

use super::error::{Error, ErrorKind};

const NAME_PATTERN: &str = "[a-zA-Z0-9_.-]+";
const HASH_KEY_PATTERN: &str = r"0|([1-9]\d{0,38})";
const SEQUENCE_PATTERN: &str = r"0|([1-9]\d{0,128})";
/// Most characters of a stream name or shard id.
const NAME_CHARS: usize = 128;
const ITERATOR_CHARS: usize = 512;
const SEQUENCE_DIGITS: usize = 129;
const HASH_KEY_DIGITS: usize = 39;

/// Gathers violations of one request.
#[derive(Debug, Default)]
pub(super) struct Checks {
    violations: Vec<String>,
}

impl Checks {
    /// The end of the request's checks.
    pub(super) fn finish(self) -> Result<(), Error> {
        match self.violations.len() {
            0 => Ok(()),
            count => Err(Error::new(
                ErrorKind::Validation,
                format!(
                    "{count} validation error{} detected: {}",
                    if count == 1 { "" } else { "s" },
                    self.violations.join("; ")
                ),
            )),
        }
    }

    pub(super) fn required<T>(&mut self, field: &str, value: Option<&T>) {
        if value.is_none() {
            self.violations.push(format!(
                "Value null at '{field}' failed to satisfy constraint: Member must not be null"
            ));
        }
    }

    pub(super) fn range(&mut self, field: &str, value: Option<i64>, least: i64, most: i64) {
        let Some(value) = value else { return };
        if value < least {
            self.violate(
                field,
                &value.to_string(),
                &format!("have value greater than or equal to {least}"),
            );
        } else if value > most {
            self.violate(
                field,
                &value.to_string(),
                &format!("have value less than or equal to {most}"),
            );
        }
    }

    /// The length of a list or of decoded data, whose content is not repeated in the message.
    pub(super) fn length(&mut self, field: &str, length: usize, least: usize, most: usize) {
        if length < least || length > most {
            let (word, bound) = if length < least {
                ("greater", least)
            } else {
                ("less", most)
            };
            self.violations.push(format!(
                "Value at '{field}' failed to satisfy constraint: Member must have length {word} than or equal to {bound}"
            ));
        }
    }

    /// A stream name or shard id.
    pub(super) fn name(&mut self, field: &str, value: Option<&str>) {
        let Some(value) = value else { return };
        self.chars(field, value, NAME_CHARS);
        if !value.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) {
            self.pattern(field, value, NAME_PATTERN);
        }
    }

    pub(super) fn iterator(&mut self, field: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.chars(field, value, ITERATOR_CHARS);
        }
    }

    pub(super) fn partition_key(&mut self, field: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.chars(field, value, 256);
        }
    }

    pub(super) fn hash_key(&mut self, field: &str, value: Option<&str>) {
        if let Some(value) = value.filter(|v| !is_number(v, HASH_KEY_DIGITS)) {
            self.pattern(field, value, HASH_KEY_PATTERN);
        }
    }

    pub(super) fn sequence(&mut self, field: &str, value: Option<&str>) {
        if let Some(value) = value.filter(|v| !is_number(v, SEQUENCE_DIGITS)) {
            self.pattern(field, value, SEQUENCE_PATTERN);
        }
    }

    pub(super) fn one_of(&mut self, field: &str, value: Option<&str>, allowed: &[&str]) {
        if let Some(value) = value.filter(|v| !allowed.contains(v)) {
            self.violate(
                field,
                value,
                &format!("satisfy enum value set: [{}]", allowed.join(", ")),
            );
        }
    }

    fn chars(&mut self, field: &str, value: &str, most: usize) {
        let chars = value.chars().count();
        if chars < 1 {
            self.violate(field, value, "have length greater than or equal to 1");
        } else if chars > most {
            self.violate(field, value, &format!("have length less than or equal to {most}"));
        }
    }

    fn pattern(&mut self, field: &str, value: &str, pattern: &str) {
        self.violate(field, value, &format!("satisfy regular expression pattern: {pattern}"));
    }

    fn violate(&mut self, field: &str, value: &str, must: &str) {
        self.violations.push(format!(
            "Value '{value}' at '{field}' failed to satisfy constraint: Member must {must}"
        ));
    }
}

/// Decimal digits without leading zeros.
fn is_number(text: &str, most_digits: usize) -> bool {
    let plain = !text.is_empty() && text.len() <= most_digits && text.bytes().all(|b| b.is_ascii_digit());
    plain && (text == "0" || !text.starts_with('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_violations_are_told_at_once() {
        let mut checks = Checks::default();
        checks.name("streamName", Some("a/b"));
        checks.range("limit", Some(0), 1, 10_000);
        checks.required::<u32>("shardCount", None);
        let message = checks.finish().expect_err("three violations").message;
        assert_eq!(
            message,
            "3 validation errors detected: Value 'a/b' at 'streamName' failed to satisfy constraint: Member must satisfy \
             regular expression pattern: [a-zA-Z0-9_.-]+; Value '0' at 'limit' failed to satisfy constraint: Member must \
             have value greater than or equal to 1; Value null at 'shardCount' failed to satisfy constraint: Member must \
             not be null"
        );
    }

    #[test]
    fn numbers_have_no_leading_zeros() {
        for good in ["0", "1", "340282366920938463463374607431768211455"] {
            assert!(is_number(good, HASH_KEY_DIGITS), "{good}");
        }
        for bad in ["", "01", "-1", "1.0", &"9".repeat(40)] {
            assert!(!is_number(bad, HASH_KEY_DIGITS), "{bad}");
        }
    }
}
