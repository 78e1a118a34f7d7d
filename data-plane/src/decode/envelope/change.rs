//! Images of DynamoDB items as plain JSON: `{"id":{"N":"7"},"tags":{"SS":["a"]}}` is `{"id":7,"tags":["a"]}`.
//!
//! Numbers are copied digit by digit. Recursion follows the nesting of the item, which the cursor bounds.

use super::{Attempt, Cursor, Fail, RejectionKind};

/// Writes an image, which is JSON, as a plain object.
pub(super) fn image(image: &[u8], out: &mut Vec<u8>) -> Attempt<()> {
    map(&mut Cursor::new(image), out)
}

/// An object of attributes, at the cursor.
fn map(cursor: &mut Cursor<'_>, out: &mut Vec<u8>) -> Attempt<()> {
    expect(cursor, b'{', "is not an object of attributes")?;
    cursor.enter()?;
    out.push(b'{');
    if cursor.peek() == Some(b'}') {
        cursor.leave();
        out.push(b'}');
        return Ok(());
    }
    loop {
        let start = cursor.position();
        let name = cursor.key()?;
        // The key as it stands, with its colon.
        out.extend_from_slice(cursor.since(start));
        attribute(cursor, out).map_err(|fail| fail.under_key(&name.resolve()))?;
        if !cursor.next_item(b'}')? {
            out.push(b'}');
            return Ok(());
        }
        out.push(b',');
    }
}

/// A value with its type: an object of one member.
fn attribute(cursor: &mut Cursor<'_>, out: &mut Vec<u8>) -> Attempt<()> {
    expect(cursor, b'{', "is not an attribute value such as {\"S\":\"text\"}")?;
    let start = cursor.position();
    cursor.enter()?;
    if cursor.peek() == Some(b'}') {
        return Err(wrong("has no type"));
    }
    let kind = cursor.key()?;
    match &*kind.resolve() {
        b"S" | b"B" => string(cursor, out)?,
        b"N" => number(cursor, out)?,
        b"BOOL" => match cursor.peek() {
            Some(b't' | b'f') => out.extend_from_slice(cursor.skip_value()?),
            _ => return Err(wrong("is no BOOL")),
        },
        b"NULL" => {
            cursor.skip_value()?;
            out.extend_from_slice(b"null");
        }
        b"M" => map(cursor, out)?,
        b"L" => list(cursor, out, attribute)?,
        b"SS" | b"BS" => list(cursor, out, string)?,
        b"NS" => list(cursor, out, number)?,
        other => {
            let shown = super::super::reject::shortened(other);
            return Err(wrong(&format!("has a type that DynamoDB does not have: {shown}")));
        }
    }
    if cursor.next_item(b'}')? {
        return Err(wrong("has several types"));
    }
    debug_assert!(cursor.position() > start);
    Ok(())
}

fn list(
    cursor: &mut Cursor<'_>,
    out: &mut Vec<u8>,
    item: fn(&mut Cursor<'_>, &mut Vec<u8>) -> Attempt<()>,
) -> Attempt<()> {
    expect(cursor, b'[', "is not a list")?;
    cursor.enter()?;
    out.push(b'[');
    if cursor.peek() == Some(b']') {
        cursor.leave();
        out.push(b']');
        return Ok(());
    }
    for index in 0.. {
        item(cursor, out).map_err(|fail| fail.under_index(index))?;
        if !cursor.next_item(b']')? {
            break;
        }
        out.push(b',');
    }
    out.push(b']');
    Ok(())
}

fn string(cursor: &mut Cursor<'_>, out: &mut Vec<u8>) -> Attempt<()> {
    expect(cursor, b'"', "is not a text")?;
    out.extend_from_slice(cursor.skip_value()?);
    Ok(())
}

/// A number, which stands in a text.
fn number(cursor: &mut Cursor<'_>, out: &mut Vec<u8>) -> Attempt<()> {
    expect(cursor, b'"', "is not a number in a text")?;
    let text = cursor.string()?;
    let digits = text.resolve();
    let mut number = Cursor::new(&digits);
    if number.number().is_err() || number.peek().is_some() {
        return Err(wrong("is not a number in a text"));
    }
    out.extend_from_slice(&digits);
    Ok(())
}

fn expect(cursor: &Cursor<'_>, first: u8, what: &str) -> Attempt<()> {
    if cursor.peek() == Some(first) {
        return Ok(());
    }
    Err(wrong(what))
}

#[cold]
fn wrong(what: &str) -> Fail {
    let message = format!("the record is not a change record of DynamoDB: a value of it {what}");
    Fail::other(RejectionKind::NotInEnvelope, 0, message)
}
