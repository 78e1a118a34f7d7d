//! Paths of the HTTP form, as `google.api.http` writes them: literals, `*`, variables over one or more segments, and a verb behind a
//! colon. `**` is not used by our protocol, and refused.

use percent_encoding::percent_decode_str;

/// A path with places in it.
#[derive(Debug)]
pub(super) struct Template {
    /// What has to be there, segment by segment; `None` is any text.
    pub segments: Vec<Option<String>>,
    /// Fields that the path fills.
    pub variables: Vec<Variable>,
    /// What stands behind the colon at the end.
    pub verb: Option<String>,
}

/// A field that segments of a path fill.
#[derive(Debug)]
pub(super) struct Variable {
    /// Path of the field in the request, such as `pipe.name`.
    pub field: String,
    /// Its segments.
    pub segments: std::ops::Range<usize>,
}

impl Template {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("{text}: {what}");
        let rest = text.strip_prefix('/').ok_or_else(|| wrong("has to begin with /"))?;
        // A verb is what follows the last colon that is in no variable.
        let (rest, verb) = match rest.rsplit_once(':') {
            Some((path, verb)) if !verb.contains(['}', '/']) => (path, Some(verb.to_owned())),
            _ => (rest, None),
        };
        let (mut segments, mut variables) = (Vec::new(), Vec::new());
        let mut open: Option<(String, usize)> = None;
        for part in rest.split('/') {
            let mut part = part;
            if let Some(inside) = part.strip_prefix('{') {
                let end = inside
                    .find(['=', '}'])
                    .ok_or_else(|| wrong("has a variable without an end"))?;
                open = Some((inside[..end].to_owned(), segments.len()));
                part = match &inside[end..] {
                    "}" => "*}",
                    pattern => &pattern[1..],
                };
            }
            let (part, closes) = match part.strip_suffix('}') {
                Some(part) => (part, true),
                None => (part, false),
            };
            match part {
                "" | "**" => return Err(wrong("has a segment that is empty or `**`")),
                "*" => segments.push(None),
                literal => segments.push(Some(literal.to_owned())),
            }
            if closes {
                let (field, start) = open.take().ok_or_else(|| wrong("closes what is not open"))?;
                variables.push(Variable {
                    field,
                    segments: start..segments.len(),
                });
            }
        }
        if open.is_some() {
            return Err(wrong("has a variable without an end"));
        }
        Ok(Self {
            segments,
            variables,
            verb,
        })
    }

    /// What a path, as it is in a request, fills the fields with; `None` if it is another path.
    pub(super) fn matches(&self, path: &str) -> Option<Vec<(&str, String)>> {
        let path = path.strip_prefix('/')?;
        let path = match &self.verb {
            Some(verb) => path.strip_suffix(verb.as_str())?.strip_suffix(':')?,
            // What is behind a colon is a verb; in a name it is written %3A.
            None if path.rsplit('/').next().is_some_and(|last| last.contains(':')) => return None,
            None => path,
        };
        let mut decoded = Vec::with_capacity(self.segments.len());
        for (at, segment) in path.split('/').enumerate() {
            let segment = percent_decode_str(segment).decode_utf8().ok()?;
            match self.segments.get(at)? {
                Some(literal) if *literal != segment => return None,
                None if segment.is_empty() => return None,
                _ => decoded.push(segment),
            }
        }
        if decoded.len() != self.segments.len() {
            return None;
        }
        let mut filled = Vec::with_capacity(self.variables.len());
        for variable in &self.variables {
            let segments = &decoded[variable.segments.clone()];
            // A slash in one segment would be taken for the end of it.
            if segments.len() > 1 && segments.iter().any(|segment| segment.contains('/')) {
                return None;
            }
            filled.push((variable.field.as_str(), segments.join("/")));
        }
        Some(filled)
    }

    /// Whether there are paths that match both.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.verb == other.verb
            && self.segments.len() == other.segments.len()
            && self.segments.iter().zip(&other.segments).all(|pair| match pair {
                (Some(one), Some(two)) => one == two,
                _ => true,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(template: &str, path: &str) -> Option<Vec<(String, String)>> {
        let template = Template::parse(template).unwrap();
        let fields = template.matches(path)?;
        Some(
            fields
                .into_iter()
                .map(|(field, text)| (field.to_owned(), text))
                .collect(),
        )
    }

    fn one(field: &str, text: &str) -> Option<Vec<(String, String)>> {
        Some(vec![(field.to_owned(), text.to_owned())])
    }

    #[test]
    fn paths_fill_fields() {
        let pipe = "/v1/{pipe.name=projects/*/pipes/*}";
        assert_eq!(
            filled(pipe, "/v1/projects/a/pipes/b"),
            one("pipe.name", "projects/a/pipes/b")
        );
        for other in [
            "/v1/projects/a/pipes",
            "/v1/projects/a/pipes/",
            "/v1/projects//pipes/b",
            "/v1/projects/a/pipes/b/c",
            "/v1/projects/a/credentials/b",
            "/v2/projects/a/pipes/b",
            "/v1/projects/a%2Fb/pipes/c",
            "/v1/projects/%FF/pipes/c",
            "v1/projects/a/pipes/b",
        ] {
            assert_eq!(filled(pipe, other), None, "{other}");
        }
        assert_eq!(
            filled("/v1/{name=tokens/*}:revoke", "/v1/tokens/a:revoke"),
            one("name", "tokens/a")
        );
        assert_eq!(filled("/v1/{name=tokens/*}:revoke", "/v1/tokens/a"), None);
        assert_eq!(filled("/v1/{name=tokens/*}", "/v1/tokens/a:b"), None);
        assert_eq!(
            filled("/v1/{name=tokens/*}", "/v1/tokens/a%3Ab"),
            one("name", "tokens/a:b")
        );
        let table = filled(
            "/v1/{parent=projects/*}/databases/{database}/tables/{table}:describe",
            "/v1/projects/p/databases/a%2Fb/tables/%60t%3A:describe",
        );
        let expected = [("parent", "projects/p"), ("database", "a/b"), ("table", "`t:")];
        assert_eq!(
            table,
            Some(
                expected
                    .map(|(field, text)| (field.to_owned(), text.to_owned()))
                    .to_vec()
            )
        );
    }

    #[test]
    fn what_is_not_a_template_is_refused() {
        for text in [
            "v1",
            "/v1/{name",
            "/v1/name}",
            "/v1//a",
            "/v1/{name=**}",
            "/v1/{name=a/*",
        ] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
    }
}
