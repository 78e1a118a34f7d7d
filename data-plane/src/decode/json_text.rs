//! An object for a `JSON` column: its text goes to the server, which parses it again.
//!
//! The server refuses a whole block for one text it cannot store, so what it would refuse is refused here, for the one
//! record: paths that stand twice, and numbers that 64 bits or a double cannot hold. What a declared path type refuses
//! is left to the server.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::cursor::Cursor;
use super::number;
use super::reject::{Attempt, Fail, RejectionKind};
use crate::batch::block::column::{Json, PathSet};

/// Tells the hash of a key within its object from the hash of a path within the column's value.
const KEY_SEED: u64 = 0x9E37_79B9_7F4A_7C15;

pub(crate) fn append(cursor: &mut Cursor<'_>, json: &mut Json) -> Attempt<()> {
    let start = cursor.position();
    if cursor.peek() != Some(b'{') {
        return Err(Fail::mismatch(start, "is not an object"));
    }
    let depth = cursor.depth();
    let text = cursor.skip_value()?;
    let end = cursor.position();

    let paths = &mut json.paths;
    paths.hashes.clear();
    paths.path.clear();
    paths.objects = 0;
    cursor.seek(start);
    object(cursor, paths, 0)?;
    cursor.seek(end);
    cursor.set_depth(depth);
    paths.hashes.sort_unstable();
    // Equal hashes of different paths are a matter of 2^-64: then a good record lands in the error table, where it is
    // seen.
    if paths.hashes.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Fail::other(
            RejectionKind::DuplicateKey,
            start,
            "a path stands twice in one object of a JSON column",
        ));
    }
    json.texts.push(text);
    Ok(())
}

/// Collects an object's keys and paths. The text is known to be JSON of bounded depth, so this may recurse.
fn object(cursor: &mut Cursor<'_>, paths: &mut PathSet, scope: u64) -> Attempt<()> {
    paths.objects += 1;
    let this = paths.objects;
    cursor.enter()?;
    if cursor.peek() == Some(b'}') {
        cursor.leave();
        return Ok(());
    }
    let outer = paths.path.len();
    loop {
        let key = cursor.key()?;
        if outer > 0 {
            paths.path.push(b'.');
        }
        let key_start = paths.path.len();
        key.append_to(&mut paths.path);
        paths
            .hashes
            .push(xxh3_64_with_seed(&paths.path[key_start..], KEY_SEED ^ this));
        value(cursor, paths, scope)?;
        paths.path.truncate(outer);
        if !cursor.next_item(b'}')? {
            return Ok(());
        }
    }
}

fn value(cursor: &mut Cursor<'_>, paths: &mut PathSet, scope: u64) -> Attempt<()> {
    match cursor.peek() {
        Some(b'{') => return object(cursor, paths, scope),
        // NULL is no value of its path.
        Some(b'n') => return cursor.literal("null"),
        _ => paths.hashes.push(xxh3_64_with_seed(&paths.path, scope)),
    }
    leaf(cursor, paths)
}

/// A value that is no object: arrays are values, and objects in them start paths of their own.
fn leaf(cursor: &mut Cursor<'_>, paths: &mut PathSet) -> Attempt<()> {
    let start = cursor.position();
    match cursor.peek() {
        Some(b'[') => {
            cursor.enter()?;
            if cursor.peek() == Some(b']') {
                cursor.leave();
                return Ok(());
            }
            loop {
                if cursor.peek() == Some(b'{') {
                    let outer = std::mem::take(&mut paths.path);
                    let scope = paths.objects + 1;
                    let found = object(cursor, paths, scope);
                    paths.path = outer;
                    found?;
                } else {
                    leaf(cursor, paths)?;
                }
                if !cursor.next_item(b']')? {
                    return Ok(());
                }
            }
        }
        Some(b'"' | b't' | b'f' | b'n') => cursor.skip_value().map(|_| ()),
        _ => {
            let number = cursor.number()?;
            let fits = if number.is_integer {
                number::parse_i128(number.text, true)
                    .is_ok_and(|n| i64::try_from(n).is_ok() || u64::try_from(n).is_ok())
            } else {
                number::parse_f64(number.text).is_ok()
            };
            if fits {
                Ok(())
            } else {
                Err(Fail::out_of_range(start, "is too large for a number in a JSON column"))
            }
        }
    }
}
