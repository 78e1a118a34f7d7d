//! Between what is stored and what is meant. Reading checks everything: a row that says something impossible is an error
//! that names its place, never a panic and never a guess.

use std::{fmt::Display, str::FromStr};

use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};

use super::Error;

fn corrupt(place: &'static str, what: &impl Display) -> Error {
    Error::Corrupt {
        place,
        what: what.to_string(),
    }
}

/// A value as JSON text.
pub(super) fn to_json(place: &'static str, value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| corrupt(place, &error))
}

/// A value from JSON text.
pub(super) fn from_json<T: DeserializeOwned>(place: &'static str, text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| corrupt(place, &error))
}

/// A value from its text.
pub(super) fn from_text<T: FromStr<Err: Display>>(place: &'static str, text: &str) -> Result<T, Error> {
    text.parse().map_err(|error: T::Err| corrupt(place, &error))
}

/// A number as the databases hold it.
pub(super) fn to_number(place: &'static str, value: u64) -> Result<i64, Error> {
    value
        .try_into()
        .map_err(|_| corrupt(place, &format_args!("{value} does not fit")))
}

/// A number that is not negative.
pub(super) fn from_number(place: &'static str, value: i64) -> Result<u64, Error> {
    value
        .try_into()
        .map_err(|_| corrupt(place, &format_args!("{value} is negative")))
}

/// A time from milliseconds since the epoch.
pub(super) fn from_millis(place: &'static str, value: i64) -> Result<Timestamp, Error> {
    Timestamp::from_millisecond(value).map_err(|error| corrupt(place, &error))
}
