//! What AWS services wrap documents in, undone: subscriptions of CloudWatch Logs, events of EventBridge, notifications of SNS, change
//! records of DynamoDB. `docs/mapping.md` says what becomes of each, with examples.
//!
//! ```text
//!   {"a":1,"payload":{"x":2}}  -->  {"_envelope":{"a":1},"x":2}
//! ```
//!
//! The row is read from an object of the payload's members. What else is in the envelope goes before them as `_envelope`, if a
//! mapping leads there. Values are copied as they stand: no number is read.
//!
//! Invariants:
//! - A message is looked at whole before its first document is given: one that is no such envelope gives none.
//! - The work is linear in the length of the message, but for `_envelope`, which is copied once for each log event: whoever takes
//!   the documents bounds that.

mod change;

use millrace_common::pipe::Envelope;

use super::{
    cursor::{Cursor, Text},
    reject::{Attempt, Fail, RejectionKind},
};

/// The key of what is around a document.
pub(super) const ABOUT: &[u8] = b"_envelope";
/// Scratch memory that is kept for the next message.
const KEPT_BYTES: usize = 1 << 20;

/// A document that was wrapped.
#[derive(Debug, Clone, Copy)]
pub(super) struct Document<'a> {
    /// A JSON object: its row.
    pub(super) row: &'a [u8],
    /// What was wrapped, as it stood in the envelope, without the escapes of a text.
    pub(super) raw: &'a [u8],
    /// What stands for it in the error table if it is no row: a part of the message.
    pub(super) text: &'a [u8],
    /// The message from it on.
    pub(super) rest: &'a [u8],
}

/// Who takes documents; false if no more are wanted.
pub(super) type Take<'t> = &'t mut dyn FnMut(Document<'_>) -> bool;

/// Unwraps messages, one after the other.
#[derive(Debug, Default)]
pub(super) struct Opener {
    row: Vec<u8>,
    inner: Vec<u8>,
    about: About,
}

impl Opener {
    /// Gives the documents of a message, which is UTF-8. `about`: with what is around them.
    ///
    /// # Errors
    /// If it is not in such an envelope; then nothing was given.
    pub(super) fn open(&mut self, envelope: Envelope, message: &[u8], about: bool, take: Take<'_>) -> Attempt<()> {
        self.about.begin(about);
        let opened = match envelope {
            Envelope::CloudwatchLogs => self.log_events(message, take),
            Envelope::Eventbridge => self.event(message, take),
            Envelope::Sns => self.notification(message, take),
            Envelope::DynamodbStream => self.change(message, take),
        };
        for buffer in [&mut self.row, &mut self.inner, &mut self.about.members] {
            buffer.shrink_to(KEPT_BYTES);
        }
        opened
    }

    /// `{"messageType":"DATA_MESSAGE",…,"logEvents":[{"id":…,"timestamp":…,"message":"…"},…]}`
    fn log_events(&mut self, message: &[u8], take: Take<'_>) -> Attempt<()> {
        const WHAT: &str = "subscription of CloudWatch Logs";
        let [kind, events] = self.about.whole(message, WHAT, ["messageType", "logEvents"])?;
        match kind.text {
            b"\"CONTROL_MESSAGE\"" => return Ok(()),
            b"\"DATA_MESSAGE\"" => {}
            _ => {
                return Err(not(
                    WHAT,
                    "its `messageType` is neither DATA_MESSAGE nor CONTROL_MESSAGE",
                ));
            }
        }
        self.about.member(kind.member);
        let mut count = 0;
        items(&events, WHAT, &mut |_, event| {
            count += 1;
            log_event(event, None).map(|_| true)
        })?;
        if count == 0 {
            let empty = "the record is a subscription of CloudWatch Logs without log events";
            return Err(Fail::other(RejectionKind::EmptyRecord, 0, empty));
        }
        let around = self.about.members.len();
        let Self { row, inner, about, .. } = self;
        items(&events, WHAT, &mut |at, event| {
            about.members.truncate(around);
            let text = log_event(event, Some(about))?;
            inner.clear();
            string(text.text)?.append_to(inner);
            write_text(row, about, inner, text.text);
            Ok(take(Document {
                row,
                raw: inner,
                text: event,
                rest: message.get(events.at + at..).unwrap_or_default(),
            }))
        })
    }

    /// `{"version":"0","id":…,"detail-type":…,"source":…,…,"detail":{…}}`
    fn event(&mut self, message: &[u8], take: Take<'_>) -> Attempt<()> {
        const WHAT: &str = "event of EventBridge";
        let [kind, source, detail] = self.about.whole(message, WHAT, ["detail-type", "source", "detail"])?;
        self.about.member(kind.member);
        self.about.member(source.member);
        if detail.text.first() != Some(&b'{') {
            return Err(not(WHAT, "its `detail` is not an object"));
        }
        write_object(&mut self.row, &self.about, detail.text);
        take(whole(&self.row, detail.text, message));
        Ok(())
    }

    /// `{"Type":"Notification","MessageId":…,"TopicArn":…,"Message":"…",…}`
    fn notification(&mut self, message: &[u8], take: Take<'_>) -> Attempt<()> {
        const WHAT: &str = "notification of SNS";
        let [kind, topic, text] = self.about.whole(message, WHAT, ["Type", "TopicArn", "Message"])?;
        if kind.text != b"\"Notification\"" {
            return Err(not(WHAT, "its `Type` is not Notification"));
        }
        if text.text.first() != Some(&b'"') {
            return Err(not(WHAT, "its `Message` is not a text"));
        }
        self.about.member(kind.member);
        self.about.member(topic.member);
        self.inner.clear();
        string(text.text)?.append_to(&mut self.inner);
        write_text(&mut self.row, &self.about, &self.inner, text.text);
        take(whole(&self.row, &self.inner, message));
        Ok(())
    }

    /// `{"eventName":"MODIFY",…,"dynamodb":{"Keys":{…},"NewImage":{…},"OldImage":{…},…}}`
    fn change(&mut self, message: &[u8], take: Take<'_>) -> Attempt<()> {
        const WHAT: &str = "change record of DynamoDB";
        let [name, change] = self.about.whole(message, WHAT, ["eventName", "dynamodb"])?;
        self.about.member(name.member);
        let (mut keys, mut new, mut old) = (None, None, None);
        let about = &mut self.about;
        members(&mut Cursor::new(change.text), WHAT, &mut |key, value| {
            let slot = match key {
                b"Keys" => &mut keys,
                b"NewImage" => &mut new,
                b"OldImage" => &mut old,
                _ => {
                    about.member(value.member);
                    return Ok(());
                }
            };
            once(slot, key, value, WHAT)
        })?;
        let keys: Value<'_> = keys.ok_or_else(|| not(WHAT, "it has no `Keys`"))?;
        // What was removed, or is new, has no other image.
        let image = |value: &Value<'_>| value.text != b"null";
        let (new, old): (Option<Value<'_>>, Option<Value<'_>>) = (new.filter(image), old.filter(image));
        // Both are looked at even if nobody wants them: whether a record is refused must not depend on the mapping.
        for (key, value) in [("Keys", Some(&keys)), ("OldImage", old.as_ref())] {
            let Some(value) = value else { continue };
            self.inner.clear();
            change::image(value.text, &mut self.inner).map_err(|fail| under(fail, key))?;
            self.about.named(key, &self.inner);
        }
        let (key, value) = match &new {
            Some(image) => ("NewImage", image),
            None => ("Keys", &keys),
        };
        self.inner.clear();
        change::image(value.text, &mut self.inner).map_err(|fail| under(fail, key))?;
        write_object(&mut self.row, &self.about, &self.inner);
        take(whole(&self.row, message, message));
        Ok(())
    }
}

fn under(fail: Fail, key: &str) -> Fail {
    fail.under_key(key.as_bytes()).under_key(b"dynamodb")
}

/// The one document of a message.
fn whole<'a>(row: &'a [u8], raw: &'a [u8], message: &'a [u8]) -> Document<'a> {
    Document {
        row,
        raw,
        text: message,
        rest: message,
    }
}

/// A member of an object.
#[derive(Debug, Clone, Copy)]
struct Value<'a> {
    /// Key and value as they stand.
    member: &'a [u8],
    /// The value.
    text: &'a [u8],
    /// Where the value begins in what it was read from.
    at: usize,
}

impl Value<'_> {
    const NONE: Value<'static> = Value {
        member: b"",
        text: b"",
        at: 0,
    };
}

/// What is around a document: members of an object.
#[derive(Debug, Default)]
struct About {
    is_wanted: bool,
    members: Vec<u8>,
}

impl About {
    fn begin(&mut self, is_wanted: bool) {
        self.is_wanted = is_wanted;
        self.members.clear();
    }

    fn member(&mut self, member: &[u8]) {
        if self.is_wanted {
            self.comma();
            self.members.extend_from_slice(member);
        }
    }

    fn named(&mut self, key: &str, value: &[u8]) {
        if self.is_wanted {
            self.comma();
            self.members.push(b'"');
            self.members.extend_from_slice(key.as_bytes());
            self.members.extend_from_slice(b"\":");
            self.members.extend_from_slice(value);
        }
    }

    fn comma(&mut self) {
        if !self.members.is_empty() {
            self.members.push(b',');
        }
    }

    /// Reads a message that is one object with these members; the others are noted as what is around it.
    fn whole<'a, const N: usize>(
        &mut self,
        message: &'a [u8],
        what: &'static str,
        names: [&'static str; N],
    ) -> Attempt<[Value<'a>; N]> {
        let mut found = [None; N];
        let mut cursor = Cursor::new(message);
        cursor.skip_space();
        members(
            &mut cursor,
            what,
            &mut |key, value| match names.iter().position(|name| name.as_bytes() == key) {
                Some(index) => once(&mut found[index], key, value, what),
                None => {
                    self.member(value.member);
                    Ok(())
                }
            },
        )?;
        cursor.skip_space();
        if cursor.peek().is_some() {
            return Err(not(what, "something follows it"));
        }
        let missing = names.iter().zip(&found).find(|(_, value)| value.is_none());
        if let Some((name, _)) = missing {
            return Err(not(what, &format!("it has no `{name}`")));
        }
        Ok(found.map(|value| value.unwrap_or(Value::NONE)))
    }
}

/// Puts a value where none is yet.
fn once<'a>(slot: &mut Option<Value<'a>>, key: &[u8], value: Value<'a>, what: &str) -> Attempt<()> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => {
            let twice = format!("it has `{}` twice", String::from_utf8_lossy(key));
            Err(not(what, &twice))
        }
    }
}

/// Reads the members of the object at the cursor.
fn members<'a>(
    cursor: &mut Cursor<'a>,
    what: &'static str,
    take: &mut dyn FnMut(&[u8], Value<'a>) -> Attempt<()>,
) -> Attempt<()> {
    if cursor.peek() != Some(b'{') {
        // What is no JSON is called that.
        cursor.skip_value()?;
        return Err(not(what, "it is not an object"));
    }
    cursor.enter()?;
    if cursor.peek() == Some(b'}') {
        cursor.leave();
        return Ok(());
    }
    loop {
        let start = cursor.position();
        let key = cursor.key()?;
        let at = cursor.position();
        let text = cursor.skip_value()?;
        let member = cursor.since(start);
        take(&key.resolve(), Value { member, text, at })?;
        if !cursor.next_item(b'}')? {
            return Ok(());
        }
    }
}

/// Gives the items of an array, with their places in it, until no more are wanted.
fn items<'a>(array: &Value<'a>, what: &str, take: &mut dyn FnMut(usize, &'a [u8]) -> Attempt<bool>) -> Attempt<()> {
    if array.text.first() != Some(&b'[') {
        return Err(not(what, "its `logEvents` is not an array"));
    }
    let mut cursor = Cursor::new(array.text);
    cursor.enter()?;
    if cursor.peek() == Some(b']') {
        return Ok(());
    }
    loop {
        let at = cursor.position();
        let item = cursor.skip_value()?;
        if !take(at, item)? || !cursor.next_item(b']')? {
            return Ok(());
        }
    }
}

/// The message of a log event; the others of its members are noted.
fn log_event<'a>(event: &'a [u8], mut about: Option<&mut About>) -> Attempt<Value<'a>> {
    const WHAT: &str = "log event of CloudWatch Logs";
    let mut message: Option<Value<'a>> = None;
    members(&mut Cursor::new(event), WHAT, &mut |key, value| {
        if key == b"message" {
            return once(&mut message, key, value, WHAT);
        }
        if let Some(about) = &mut about {
            about.member(value.member);
        }
        Ok(())
    })?;
    message
        .filter(|message| message.text.first() == Some(&b'"'))
        .ok_or_else(|| not(WHAT, "it has no `message` that is a text"))
}

/// The text of a JSON string.
fn string(value: &[u8]) -> Attempt<Text<'_>> {
    Cursor::new(value).string()
}

/// The row of an object.
fn write_object(row: &mut Vec<u8>, about: &About, object: &[u8]) {
    let inner = object.strip_prefix(b"{").and_then(|inner| inner.strip_suffix(b"}"));
    let inner = inner.unwrap_or_default();
    begin(row, about);
    if !inner.trim_ascii().is_empty() {
        if about.is_wanted {
            row.push(b',');
        }
        row.extend_from_slice(inner);
    }
    row.push(b'}');
}

/// The row of a text: its members, if it is an object, else `message`. `quoted` is the text as a JSON string.
fn write_text(row: &mut Vec<u8>, about: &About, text: &[u8], quoted: &[u8]) {
    let trimmed = text.trim_ascii();
    if is_object(trimmed) {
        return write_object(row, about, trimmed);
    }
    begin(row, about);
    if about.is_wanted {
        row.push(b',');
    }
    row.extend_from_slice(b"\"message\":");
    row.extend_from_slice(quoted);
    row.push(b'}');
}

fn begin(row: &mut Vec<u8>, about: &About) {
    row.clear();
    row.push(b'{');
    if about.is_wanted {
        row.push(b'"');
        row.extend_from_slice(ABOUT);
        row.extend_from_slice(b"\":{");
        row.extend_from_slice(&about.members);
        row.push(b'}');
    }
}

fn is_object(text: &[u8]) -> bool {
    if text.first() != Some(&b'{') {
        return false;
    }
    let mut cursor = Cursor::new(text);
    cursor.skip_value().is_ok() && cursor.peek().is_none()
}

#[cold]
fn not(what: &str, why: &str) -> Fail {
    let message = format!("the record is not a {what}: {why}").replace(" a event", " an event");
    Fail::other(RejectionKind::NotInEnvelope, 0, message)
}

#[cfg(test)]
mod tests;
