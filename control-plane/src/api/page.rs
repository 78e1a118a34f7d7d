//! Pages of a listing. A token is sealed, so that nobody can make one, use one of another listing, or read what is in it.

use std::{fmt::Display, str::FromStr};

use base64_simd::URL_SAFE_NO_PAD;
use millrace_common::{crypto::Sealer, error::ApiError};

use super::errors::INVALID_PAGE_TOKEN;

/// Entries of a page if the request does not say.
const DEFAULT_SIZE: u32 = 50;
/// Most entries of a page.
const MAX_SIZE: u32 = 500;
/// Longest token that is looked at; ours have about 130 characters.
const MAX_TOKEN_LENGTH: usize = 512;

/// One page that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Page<T> {
    /// Entries.
    pub(super) size: u32,
    /// The last entry of the page before.
    pub(super) after: Option<T>,
}

/// Which listing a token belongs to.
fn context(listing: &str, parent: &impl Display) -> String {
    format!("page/{listing}/{parent}")
}

/// Reads size and token of a request for `listing` of `parent`.
pub(super) fn parse<T: FromStr>(
    sealer: &Sealer,
    listing: &str,
    parent: &impl Display,
    size: i32,
    token: &str,
) -> Result<Page<T>, ApiError> {
    let size = match u32::try_from(size) {
        Ok(0) => DEFAULT_SIZE,
        Ok(size) => size.min(MAX_SIZE),
        Err(_) => return Err(ApiError::invalid_field("page_size", "must not be negative")),
    };
    if token.is_empty() {
        return Ok(Page { size, after: None });
    }
    let after = open(sealer, &context(listing, parent), token).ok_or_else(|| {
        let what = "is not a token of this listing: start again without one";
        ApiError::invalid_field("page_token", what).with_reason(INVALID_PAGE_TOKEN)
    })?;
    Ok(Page {
        size,
        after: Some(after),
    })
}

fn open<T: FromStr>(sealer: &Sealer, context: &str, token: &str) -> Option<T> {
    if token.len() > MAX_TOKEN_LENGTH {
        return None;
    }
    let sealed = URL_SAFE_NO_PAD.decode_to_vec(token).ok()?;
    let plain = sealer.open(context, &sealed).ok()?;
    std::str::from_utf8(&plain).ok()?.parse().ok()
}

/// The token of the page after the entry `last`.
pub(super) fn token(
    sealer: &Sealer,
    listing: &str,
    parent: &impl Display,
    last: &impl Display,
) -> Result<String, ApiError> {
    let sealed = sealer
        .seal(&context(listing, parent), last.to_string().as_bytes())
        .map_err(|error| ApiError::internal(&error))?;
    Ok(URL_SAFE_NO_PAD.encode_to_string(sealed))
}

#[cfg(test)]
mod tests {
    use millrace_common::{
        crypto::KEY_LEN,
        ids::{Label, ProjectName},
    };

    use super::*;

    #[test]
    fn a_token_leads_on_in_its_own_listing_only() {
        let sealer = Sealer::new(&[1; KEY_LEN]).unwrap();
        let (a, b): (ProjectName, ProjectName) = ("projects/a".parse().unwrap(), "projects/b".parse().unwrap());
        let last: Label = "events".parse().unwrap();
        let token = token(&sealer, "pipes", &a, &last).unwrap();
        assert!(
            token
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'),
            "{token}"
        );
        assert_eq!(
            parse(&sealer, "pipes", &a, 7, &token).unwrap(),
            Page {
                size: 7,
                after: Some(last)
            }
        );

        let mut flipped = token.clone().into_bytes();
        flipped[20] ^= 1;
        let flipped = String::from_utf8(flipped).unwrap();
        let other_key = Sealer::new(&[2; KEY_LEN]).unwrap();
        for refused in [
            parse::<Label>(&sealer, "pipes", &b, 7, &token),
            parse(&sealer, "credentials", &a, 7, &token),
            parse(&other_key, "pipes", &a, 7, &token),
            parse(&sealer, "pipes", &a, 7, &flipped),
            parse(&sealer, "pipes", &a, 7, "events"),
            parse(&sealer, "pipes", &a, 7, &"A".repeat(1_000_000)),
        ] {
            assert_eq!(refused.unwrap_err().reason, INVALID_PAGE_TOKEN);
        }
    }

    #[test]
    fn sizes_are_coerced_down() {
        let sealer = Sealer::new(&[1; KEY_LEN]).unwrap();
        let project: ProjectName = "projects/a".parse().unwrap();
        let size = |size| parse::<Label>(&sealer, "pipes", &project, size, "").map(|page| page.size);
        assert_eq!(size(0), Ok(DEFAULT_SIZE));
        assert_eq!(size(1), Ok(1));
        assert_eq!(size(1_000_000_000), Ok(MAX_SIZE));
        for negative in [-1, i32::MIN] {
            assert_eq!(size(negative).unwrap_err().fields[0].field, "page_size");
        }
    }
}
