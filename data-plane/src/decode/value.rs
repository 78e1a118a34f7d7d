//! One JSON value into a column of any type.
//!
//! On failure the column may hold a part of the value; the caller cuts it back. Recursion follows the column's type,
//! whose depth is bounded when it is parsed, and never the record's depth.

use super::cursor::{Cursor, Text};
use super::infer;
use super::json_text;
use super::keys::KeyTable;
use super::reject::{Attempt, Fail, RejectionKind};
use super::scalar;
use crate::batch::block::column::{Array, Column, Map, Tuple};
use crate::batch::block::strings::Strings;
use crate::batch::block::variant::{Dynamic, Variant};
use crate::short::Short;

/// Reads the value at the cursor into one more row of the column.
pub(crate) fn append(cursor: &mut Cursor<'_>, column: &mut Column) -> Attempt<()> {
    append_here(cursor, column)
}

/// As [`append`], without a call for what is no container.
#[inline(always)]
pub(super) fn append_here(cursor: &mut Cursor<'_>, column: &mut Column) -> Attempt<()> {
    if cursor.peek() == Some(b'n') {
        cursor.literal("null")?;
        column.push_null();
        return Ok(());
    }
    let (column, nulls) = match column {
        Column::Nullable(nullable) => (&mut nullable.inner, Some(&mut nullable.nulls)),
        column => (column, None),
    };
    append_value(cursor, column)?;
    if let Some(nulls) = nulls {
        nulls.push(0);
    }
    Ok(())
}

/// Reads a value that is not null.
#[inline(always)]
fn append_value(cursor: &mut Cursor<'_>, column: &mut Column) -> Attempt<()> {
    match column {
        Column::Fixed(fixed) => scalar::append(cursor, &fixed.scalar, &mut fixed.bytes),
        Column::String(strings) => {
            if cursor.peek() == Some(b'"') {
                append_text(cursor, strings)?;
            } else {
                // Anything that is no string is kept as it is written.
                strings.push(cursor.skip_value()?);
            }
            Ok(())
        }
        // Nothing nullable is in something nullable.
        Column::Nullable(_) => append(cursor, column),
        Column::LowCardinality(dictionary) => {
            if cursor.peek() == Some(b'"') && dictionary.holds_strings() {
                let start = cursor.position();
                let text = cursor.string()?;
                if !text.has_escapes() {
                    let short = text.raw_and_more().and_then(|(length, wide)| Short::of(length, wide));
                    dictionary.push_text(text.raw(), short);
                    return Ok(());
                }
                cursor.seek(start);
            }
            append(cursor, dictionary.values_mut())?;
            dictionary.intern_last();
            Ok(())
        }
        Column::Json(json) => json_text::append(cursor, json),
        Column::Array(array) => append_array(cursor, array),
        Column::Map(map) => append_map(cursor, map),
        Column::Tuple(tuple) => match tuple.names.clone() {
            Some(names) => append_named_tuple(cursor, tuple, &names),
            None => append_tuple(cursor, tuple),
        },
        Column::Variant(variant) => append_variant(cursor, variant),
        Column::Dynamic(dynamic) => append_dynamic(cursor, dynamic),
    }
}

/// Reads the string at the cursor.
#[inline(always)]
fn append_text(cursor: &mut Cursor<'_>, strings: &mut Strings) -> Attempt<()> {
    let text = cursor.string()?;
    if text.has_escapes() {
        strings.push_with(text.len(), |out| text.append_to(out));
    } else if let Some((length, wide)) = text.raw_and_more::<32>() {
        strings.push_head(length, wide);
    } else if let Some((length, wide)) = text.raw_and_more::<64>() {
        strings.push_head(length, wide);
    } else {
        strings.push(text.raw());
    }
    Ok(())
}

fn append_array(cursor: &mut Cursor<'_>, array: &mut Array) -> Attempt<()> {
    if cursor.peek() != Some(b'[') {
        return Err(not(cursor, "is not an array"));
    }
    cursor.enter()?;
    let mut count = 0;
    if cursor.peek() == Some(b']') {
        cursor.leave();
    } else {
        loop {
            append_here(cursor, &mut array.elements).map_err(|fail| fail.under_index(count))?;
            count += 1;
            if !cursor.next_item(b']')? {
                break;
            }
        }
    }
    array.ends.push(array.ends.last().copied().unwrap_or(0) + count as u64);
    Ok(())
}

fn append_map(cursor: &mut Cursor<'_>, map: &mut Map) -> Attempt<()> {
    if cursor.peek() != Some(b'{') {
        return Err(not(cursor, "is not an object"));
    }
    cursor.enter()?;
    let mut count = 0;
    if cursor.peek() == Some(b'}') {
        cursor.leave();
    } else {
        loop {
            if cursor.peek() != Some(b'"') {
                return Err(cursor.expected("expected a key in double quotes"));
            }
            let key_at = cursor.position();
            append(cursor, &mut map.keys)?;
            cursor.after_key()?;
            append(cursor, &mut map.values).map_err(|fail| fail.under_key(key_text(cursor, key_at).raw()))?;
            count += 1;
            if !cursor.next_item(b'}')? {
                break;
            }
        }
    }
    map.ends.push(map.ends.last().copied().unwrap_or(0) + count);
    Ok(())
}

/// The key that starts at `at`, read again for an error's path.
#[cold]
fn key_text<'a>(cursor: &mut Cursor<'a>, at: usize) -> Text<'a> {
    let position = cursor.position();
    cursor.seek(at);
    let key = cursor.string();
    cursor.seek(position);
    key.unwrap_or(Text::EMPTY)
}

fn append_tuple(cursor: &mut Cursor<'_>, tuple: &mut Tuple) -> Attempt<()> {
    let start = cursor.position();
    let wanted = tuple.elements.len();
    if cursor.peek() != Some(b'[') {
        return Err(not(cursor, "is not an array (of the tuple's elements)"));
    }
    cursor.enter()?;
    let wrong_count = || Fail::mismatch(start, format!("does not have exactly {wanted} elements"));
    for (index, element) in tuple.elements.iter_mut().enumerate() {
        if cursor.peek() == Some(b']') {
            return Err(wrong_count());
        }
        append(cursor, element).map_err(|fail| fail.under_index(index))?;
        if cursor.next_item(b']')? != (index + 1 < wanted) {
            return Err(wrong_count());
        }
    }
    Ok(())
}

fn append_named_tuple(cursor: &mut Cursor<'_>, tuple: &mut Tuple, names: &KeyTable) -> Attempt<()> {
    if cursor.peek() != Some(b'{') {
        return Err(not(cursor, "is not an object (of the tuple's elements)"));
    }
    tuple.objects += 1;
    let object = tuple.objects;
    cursor.enter()?;
    if cursor.peek() == Some(b'}') {
        cursor.leave();
    } else {
        // Objects of one type repeat the order of the type more often than not.
        let mut expected = 0;
        loop {
            let key_at = cursor.position();
            let found = match names.pattern(expected) {
                Some(pattern) if cursor.eat_key(pattern) => Some(expected),
                _ => names.find(&cursor.key()?.resolve()).map(|number| number as usize),
            };
            match found {
                Some(index) => {
                    if std::mem::replace(&mut tuple.seen[index], object) == object {
                        let message = format!("the key `{}` stands twice in one object", show(names.name(index)));
                        return Err(Fail::other(RejectionKind::DuplicateKey, key_at, message));
                    }
                    append(cursor, &mut tuple.elements[index]).map_err(|fail| fail.under_key(names.name(index)))?;
                    expected = index + 1;
                }
                None => {
                    cursor.skip_value()?;
                }
            }
            if !cursor.next_item(b'}')? {
                break;
            }
        }
    }
    for (element, seen) in tuple.elements.iter_mut().zip(&tuple.seen) {
        if *seen != object {
            element.push_null();
        }
    }
    Ok(())
}

fn append_variant(cursor: &mut Cursor<'_>, variant: &mut Variant) -> Attempt<()> {
    let start = cursor.position();
    // The value is checked once, so that a failure below can only mean "another type".
    cursor.skip_value()?;
    let end = cursor.position();
    let was_exact = cursor.set_exact(true);
    let depth = cursor.depth();
    for alternative in variant.try_order.clone().iter() {
        let column = &mut variant.alternatives[usize::from(*alternative)];
        let rows = column.rows();
        cursor.seek(start);
        cursor.set_depth(depth);
        if append(cursor, column).is_ok() && cursor.position() == end {
            cursor.set_exact(was_exact);
            variant.push_discriminator(*alternative);
            return Ok(());
        }
        column.truncate(rows);
    }
    cursor.set_exact(was_exact);
    Err(Fail::mismatch(start, "fits none of the column's types"))
}

fn append_dynamic(cursor: &mut Cursor<'_>, dynamic: &mut Dynamic) -> Attempt<()> {
    let start = cursor.position();
    let data_type = infer::infer(cursor)?;
    cursor.seek(start);
    let index = dynamic
        .type_index(&data_type)
        .map_err(|_| Fail::mismatch(start, "is of no type that Dynamic can hold"))?;
    let was_exact = cursor.set_exact(true);
    let column = dynamic.column(index);
    let rows = column.rows();
    let appended = append(cursor, column);
    cursor.set_exact(was_exact);
    if appended.is_err() {
        column.truncate(rows);
        dynamic.forget_new_types();
        return appended;
    }
    dynamic.push_index(index);
    Ok(())
}

fn show(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

#[cold]
fn not(cursor: &Cursor<'_>, what: &'static str) -> Fail {
    Fail::mismatch(cursor.position(), what)
}
