//! JSON Pointer (RFC 6901): where in a document a value is. Only pointers to something inside the document; `""`, the document
//! itself, is none here.

use std::fmt;
use std::str::FromStr;

/// Most steps of a pointer: records are not nested deeper.
const MAX_STEPS: usize = 128;

/// The keys and indexes that lead to a value, such as `/user/tags/0`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JsonPointer {
    first: String,
    rest: Vec<String>,
}

/// Why a text is no pointer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonPointerError {
    /// It does not begin with `/`.
    #[error("a JSON pointer begins with `/`")]
    NoSlash,
    /// A `~` is followed by neither 0 nor 1.
    #[error("in a JSON pointer `~` is written `~0` and `/` within a key `~1`; no other `~` may stand in it")]
    Escape,
    /// It is too long.
    #[error("a JSON pointer has at most {MAX_STEPS} steps")]
    TooLong,
}

impl JsonPointer {
    /// The first step and those after it.
    pub fn split_first(&self) -> (&str, &[String]) {
        (&self.first, &self.rest)
    }

    /// The place in an array that a step names, if it can name one.
    pub fn index(step: &str) -> Option<usize> {
        let is_index = step == "0" || (!step.starts_with('0') && step.bytes().all(|byte| byte.is_ascii_digit()));
        step.parse().ok().filter(|_| is_index)
    }

    /// The pointer to this key of the document.
    pub fn to_key(key: &str) -> Self {
        Self {
            first: key.to_owned(),
            rest: Vec::new(),
        }
    }
}

impl FromStr for JsonPointer {
    type Err = JsonPointerError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut steps = text.split('/');
        if steps.next() != Some("") {
            return Err(JsonPointerError::NoSlash);
        }
        let first = unescape(steps.next().ok_or(JsonPointerError::NoSlash)?)?;
        let rest = steps.map(unescape).collect::<Result<Vec<_>, _>>()?;
        if rest.len() >= MAX_STEPS {
            return Err(JsonPointerError::TooLong);
        }
        Ok(Self { first, rest })
    }
}

impl fmt::Display for JsonPointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::iter::once(&self.first)
            .chain(&self.rest)
            .try_for_each(|step| write!(f, "/{}", step.replace('~', "~0").replace('/', "~1")))
    }
}

fn unescape(step: &str) -> Result<String, JsonPointerError> {
    let mut parts = step.split('~');
    let mut resolved = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = if let Some(rest) = part.strip_prefix('0') {
            resolved.push('~');
            rest
        } else if let Some(rest) = part.strip_prefix('1') {
            resolved.push('/');
            rest
        } else {
            return Err(JsonPointerError::Escape);
        };
        resolved.push_str(rest);
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_read_as_the_rfc_says() {
        let steps = |text: &str| {
            let pointer: JsonPointer = text.parse().unwrap();
            assert_eq!(pointer.to_string(), text);
            let (first, rest) = pointer.split_first();
            [&[first.to_owned()], rest].concat()
        };
        assert_eq!(steps("/foo/0"), ["foo", "0"]);
        assert_eq!(steps("/"), [""]);
        assert_eq!(steps("/a~1b"), ["a/b"]);
        assert_eq!(steps("/m~0n"), ["m~n"]);
        assert_eq!(steps("/~01"), ["~1"]);
        assert_eq!(steps("/a//b"), ["a", "", "b"]);
        assert_eq!(JsonPointer::to_key("/x~").to_string(), "/~1x~0");
        for (text, error) in [
            ("", JsonPointerError::NoSlash),
            ("a/b", JsonPointerError::NoSlash),
            ("/a~", JsonPointerError::Escape),
            ("/a~2", JsonPointerError::Escape),
            (&"/a".repeat(129), JsonPointerError::TooLong),
        ] {
            assert_eq!(text.parse::<JsonPointer>(), Err(error), "{text}");
        }
    }

    #[test]
    fn only_plain_numbers_are_indexes() {
        assert_eq!(JsonPointer::index("0"), Some(0));
        assert_eq!(JsonPointer::index("17"), Some(17));
        for step in ["", "-", "00", "01", "+1", "a", "99999999999999999999999"] {
            assert_eq!(JsonPointer::index(step), None, "{step}");
        }
    }
}
