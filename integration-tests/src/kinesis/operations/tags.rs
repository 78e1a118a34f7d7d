//! Tags of a stream.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;

use super::super::account::Account;
use super::super::error::Error;
use super::super::validate::Checks;
use super::{Reply, StreamRef, Text, input, text};

/// The service takes this many tags at once, and as many per stream in all.
const MAX_TAGS: usize = 50;

#[derive(Deserialize)]
struct Add<'a> {
    #[serde(borrow, flatten)]
    stream: StreamRef<'a>,
    #[serde(rename = "Tags")]
    tags: Option<BTreeMap<String, String>>,
}

pub(super) fn add(account: &Account, body: &[u8]) -> Result<Reply, Error> {
    let request: Add<'_> = input(body)?;
    let mut checks = Checks::default();
    checks.required("tags", request.tags.as_ref());
    checks.finish()?;
    let stream = account.stream(request.stream.name(), request.stream.arn())?;
    stream.update(account.now_ms(), |settings| {
        let mut tags = settings.tags.clone();
        tags.extend(request.tags.unwrap_or_default());
        if tags.len() > MAX_TAGS {
            return Err(Error::invalid_argument(format!(
                "A stream has at most {MAX_TAGS} tags."
            )));
        }
        settings.tags = tags;
        Ok(Reply::empty())
    })
}

#[derive(Deserialize)]
struct Remove<'a> {
    #[serde(borrow, flatten)]
    stream: StreamRef<'a>,
    #[serde(rename = "TagKeys")]
    tag_keys: Option<Vec<String>>,
}

pub(super) fn remove(account: &Account, body: &[u8]) -> Result<Reply, Error> {
    let request: Remove<'_> = input(body)?;
    let mut checks = Checks::default();
    checks.required("tagKeys", request.tag_keys.as_ref());
    checks.finish()?;
    let stream = account.stream(request.stream.name(), request.stream.arn())?;
    stream.update(account.now_ms(), |settings| {
        for key in request.tag_keys.unwrap_or_default() {
            settings.tags.remove(&key);
        }
        Ok(Reply::empty())
    })
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow, flatten)]
    stream: StreamRef<'a>,
    #[serde(borrow, rename = "ExclusiveStartTagKey")]
    after: Option<Text<'a>>,
    #[serde(rename = "Limit")]
    limit: Option<i64>,
}

pub(super) fn list(account: &Account, body: &[u8]) -> Result<Reply, Error> {
    let request: List<'_> = input(body)?;
    let mut checks = Checks::default();
    checks.range("limit", request.limit, 1, MAX_TAGS as i64);
    checks.finish()?;
    let tags = account
        .stream(request.stream.name(), request.stream.arn())?
        .settings()
        .tags;
    let after = text(&request.after);
    let rest: Vec<_> = tags
        .iter()
        .filter(|(key, _)| after.is_none_or(|after| key.as_str() > after))
        .collect();
    let shown = rest.len().min(request.limit.map_or(MAX_TAGS, |limit| limit as usize));
    let page: Vec<_> = rest[..shown]
        .iter()
        .map(|(key, value)| json!({ "Key": key, "Value": value }))
        .collect();
    Ok(json!({ "Tags": page, "HasMoreTags": shown < rest.len() }).into())
}
