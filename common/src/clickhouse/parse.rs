//! Parser of ClickHouse type strings: recursive descent over bytes, bounded in length and in depth.
//!
//! It accepts what ClickHouse prints (and the argument spellings that users write, such as `Decimal64(3)` or
//! `Enum('a', 'b')`), and nothing that could smuggle anything else into a statement.

use std::str::FromStr;

use super::data_type::{DataType, JsonType, TupleElement};

/// Longest type string that is looked at. An `Enum16` with thousands of names is long; a megabyte is an attack.
pub const MAX_TYPE_LENGTH: usize = 256 * 1024;

/// Deepest nesting of types. ClickHouse's own parser stops at about 1000; nobody reads more than a few levels, and each
/// level costs stack here and in every walk over the tree.
pub const MAX_TYPE_DEPTH: usize = 64;

/// Why a type string does not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseTypeError {
    /// The string is longer than [`MAX_TYPE_LENGTH`].
    #[error("the type is {length} bytes long; the limit is {MAX_TYPE_LENGTH}")]
    TooLong {
        /// Length in bytes.
        length: usize,
    },
    /// The types are nested deeper than [`MAX_TYPE_DEPTH`].
    #[error("at position {position}: types are nested deeper than {MAX_TYPE_DEPTH} levels")]
    TooDeep {
        /// Byte offset in the string.
        position: usize,
    },
    /// A name that is no type known here.
    #[error("at position {position}: unknown type `{name}`{}", hint(.suggestion))]
    UnknownType {
        /// Byte offset in the string.
        position: usize,
        /// The name as written.
        name: String,
        /// A known type with nearly that name.
        suggestion: Option<&'static str>,
    },
    /// Something else stands where `expected` should.
    #[error("at position {position}: expected {expected}, found {found}")]
    Unexpected {
        /// Byte offset in the string.
        position: usize,
        /// What would have been right.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// An argument that parses but that ClickHouse does not allow.
    #[error("at position {position}: {reason}")]
    Invalid {
        /// Byte offset in the string.
        position: usize,
        /// What is wrong with it.
        reason: String,
    },
}

fn hint(suggestion: &Option<&'static str>) -> String {
    suggestion
        .map(|name| format!("; did you mean `{name}`?"))
        .unwrap_or_default()
}

impl FromStr for DataType {
    type Err = ParseTypeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_TYPE_LENGTH {
            return Err(ParseTypeError::TooLong { length: text.len() });
        }
        let mut parser = Parser {
            text,
            position: 0,
            depth: 0,
        };
        let data_type = parser.data_type()?;
        parser.space();
        if parser.position < text.len() {
            return Err(parser.unexpected("the end of the type"));
        }
        Ok(data_type)
    }
}

type Result<T, E = ParseTypeError> = std::result::Result<T, E>;

struct Parser<'a> {
    text: &'a str,
    position: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn data_type(&mut self) -> Result<DataType> {
        self.depth += 1;
        if self.depth > MAX_TYPE_DEPTH {
            return Err(ParseTypeError::TooDeep {
                position: self.position,
            });
        }
        self.space();
        let start = self.position;
        let Some(name) = self.bare_word() else {
            return Err(self.unexpected("the name of a type"));
        };
        let data_type = self.family(name, start)?;
        self.depth -= 1;
        Ok(data_type)
    }

    fn family(&mut self, name: &str, start: usize) -> Result<DataType> {
        if let Some(simple) = simple_type(name) {
            // `JSON()` and friends are printed without brackets, but ClickHouse reads them.
            return Ok(simple);
        }
        match name {
            "Decimal" => self.decimal(start),
            "Decimal32" => self.sized_decimal(9, start),
            "Decimal64" => self.sized_decimal(18, start),
            "Decimal128" => self.sized_decimal(38, start),
            "Decimal256" => self.sized_decimal(76, start),
            "FixedString" => {
                let bytes = self.in_brackets(|p| p.integer())?;
                match usize::try_from(bytes) {
                    Ok(bytes) if (1..=MAX_FIXED_STRING).contains(&bytes) => Ok(DataType::FixedString(bytes)),
                    _ => Err(invalid(
                        start,
                        format!("FixedString is 1 to {MAX_FIXED_STRING} bytes long"),
                    )),
                }
            }
            "DateTime" => {
                let time_zone = self.optional_brackets(|p| p.string())?;
                Ok(DataType::DateTime { time_zone })
            }
            "DateTime64" => self.in_brackets(|p| {
                let precision = p.precision(start)?;
                let time_zone = if p.eat(b',') { Some(p.string()?) } else { None };
                Ok(DataType::DateTime64 { precision, time_zone })
            }),
            "Time64" => Ok(DataType::Time64 {
                precision: self.in_brackets(|p| p.precision(start))?,
            }),
            "Enum8" => Ok(DataType::Enum8(narrow(self.in_brackets(Parser::enum_values)?, start)?)),
            "Enum16" => Ok(DataType::Enum16(narrow(self.in_brackets(Parser::enum_values)?, start)?)),
            "Enum" => {
                let values = self.in_brackets(Parser::enum_values)?;
                match narrow(values.clone(), start) {
                    Ok(values) => Ok(DataType::Enum8(values)),
                    Err(_) => Ok(DataType::Enum16(narrow(values, start)?)),
                }
            }
            "LowCardinality" => Ok(DataType::low_cardinality(self.in_brackets(Parser::data_type)?)),
            "Nullable" => Ok(DataType::nullable(self.in_brackets(Parser::data_type)?)),
            "Array" => Ok(DataType::array(self.in_brackets(Parser::data_type)?)),
            "Map" => self.in_brackets(|p| {
                let key = p.data_type()?;
                p.expect(b',', "`,` and the type of the map's values")?;
                Ok(DataType::Map(Box::new(key), Box::new(p.data_type()?)))
            }),
            "Tuple" => self.tuple(start),
            "Nested" => {
                let columns = self.in_brackets(|p| p.list(Parser::named_type))?;
                Ok(DataType::Nested(columns))
            }
            "Variant" => self.variant(start),
            "Dynamic" => {
                let max_types = self.optional_brackets(|p| p.setting("max_types"))?;
                Ok(DataType::Dynamic { max_types })
            }
            "JSON" => Ok(DataType::Json(Box::new(self.json()?))),
            "SimpleAggregateFunction" => self.in_brackets(|p| {
                let function = p.function()?;
                p.expect(b',', "`,` and the type of the function's argument")?;
                Ok(DataType::SimpleAggregateFunction {
                    function,
                    argument: Box::new(p.data_type()?),
                })
            }),
            _ => Err(ParseTypeError::UnknownType {
                position: start,
                name: name.chars().take(100).collect(),
                suggestion: suggest(name),
            }),
        }
    }

    fn decimal(&mut self, start: usize) -> Result<DataType> {
        // `Decimal` alone is `Decimal(10, 0)`, as in ClickHouse.
        let arguments = self.optional_brackets(|p| {
            let precision = p.integer()?;
            let scale = if p.eat(b',') { p.integer()? } else { 0 };
            Ok((precision, scale))
        })?;
        let (precision, scale) = arguments.unwrap_or((10, 0));
        if !(1..=76).contains(&precision) || !(0..=precision).contains(&scale) {
            return Err(invalid(
                start,
                format!("Decimal({precision}, {scale}): precision is 1 to 76, scale 0 to precision"),
            ));
        }
        Ok(DataType::Decimal {
            precision: precision as u8,
            scale: scale as u8,
        })
    }

    fn sized_decimal(&mut self, precision: u8, start: usize) -> Result<DataType> {
        let scale = self.in_brackets(|p| p.integer())?;
        match u8::try_from(scale) {
            Ok(scale) if scale <= precision => Ok(DataType::Decimal { precision, scale }),
            _ => Err(invalid(start, format!("the scale is 0 to {precision}, not {scale}"))),
        }
    }

    fn precision(&mut self, start: usize) -> Result<u8> {
        match self.integer()? {
            precision @ 0..=9 => Ok(precision as u8),
            other => Err(invalid(start, format!("the precision is 0 to 9, not {other}"))),
        }
    }

    fn tuple(&mut self, start: usize) -> Result<DataType> {
        let elements = self.in_brackets(|p| p.list(Parser::tuple_element))?;
        let named = elements.iter().filter(|element| element.name.is_some()).count();
        if named != 0 && named != elements.len() {
            return Err(invalid(
                start,
                "either all elements of a Tuple have names or none has".to_owned(),
            ));
        }
        Ok(DataType::Tuple(elements))
    }

    fn tuple_element(&mut self) -> Result<TupleElement> {
        self.space();
        let start = self.position;
        // `name Type` or `Type`: what follows the first word decides.
        let name = self.identifier()?;
        self.space();
        let named = matches!(self.peek(), Some(b) if b.is_ascii_alphabetic());
        if named {
            return Ok(TupleElement {
                name: Some(name),
                data_type: self.data_type()?,
            });
        }
        self.position = start;
        Ok(TupleElement {
            name: None,
            data_type: self.data_type()?,
        })
    }

    fn named_type(&mut self) -> Result<(String, DataType)> {
        self.space();
        let name = self.identifier()?;
        Ok((name, self.data_type()?))
    }

    fn variant(&mut self, start: usize) -> Result<DataType> {
        let mut alternatives = self.in_brackets(|p| p.list(Parser::data_type))?;
        // The place of an alternative by name is its discriminator, so the order is part of the wire format.
        alternatives.sort_by_cached_key(ToString::to_string);
        alternatives.dedup();
        if alternatives.len() > MAX_VARIANTS {
            return Err(invalid(start, format!("a Variant has at most {MAX_VARIANTS} types")));
        }
        if alternatives.iter().any(|t| {
            matches!(
                t,
                DataType::Nullable(_) | DataType::Variant(_) | DataType::Dynamic { .. }
            )
        }) {
            return Err(invalid(
                start,
                "Variant cannot hold Nullable, Variant or Dynamic types".to_owned(),
            ));
        }
        Ok(DataType::Variant(alternatives))
    }

    fn json(&mut self) -> Result<JsonType> {
        let mut json = JsonType::default();
        let arguments = self.optional_brackets(|p| {
            p.space();
            if p.peek() == Some(b')') {
                Ok(())
            } else {
                p.list(|p| p.json_argument(&mut json)).map(|_| ())
            }
        });
        arguments.map(|_| json)
    }

    fn json_argument(&mut self, json: &mut JsonType) -> Result<()> {
        self.space();
        let start = self.position;
        let path = self.path()?;
        if path.eq_ignore_ascii_case("skip") {
            self.space();
            let start = self.position;
            let skipped = self.path()?;
            if skipped.eq_ignore_ascii_case("regexp") {
                self.space();
                if self.peek() == Some(b'\'') {
                    json.skip_regexps.push(self.string()?);
                    return Ok(());
                }
            }
            if skipped.is_empty() {
                return Err(invalid(start, "SKIP needs a path".to_owned()));
            }
            json.skip_paths.push(skipped);
            return Ok(());
        }
        if self.eat(b'=') {
            let value = self.small_number()?;
            match path.as_str() {
                "max_dynamic_paths" => json.max_dynamic_paths = Some(value),
                "max_dynamic_types" => json.max_dynamic_types = Some(value),
                _ => return Err(invalid(start, format!("JSON has no argument `{path}`"))),
            }
            return Ok(());
        }
        let data_type = self.data_type()?;
        json.typed_paths.push((path, data_type));
        Ok(())
    }

    /// `name = number`, as in `Dynamic(max_types=5)`.
    fn setting(&mut self, name: &'static str) -> Result<u32> {
        self.space();
        let start = self.position;
        let word = self.identifier()?;
        if word != name {
            return Err(invalid(start, format!("expected `{name}`, found `{word}`")));
        }
        self.expect(b'=', "`=`")?;
        self.small_number()
    }

    fn small_number(&mut self) -> Result<u32> {
        self.space();
        let start = self.position;
        let value = self.integer()?;
        u32::try_from(value).map_err(|_| invalid(start, format!("{value} is not a number of paths or types")))
    }

    /// An aggregate function: a name, with literal parameters or without.
    fn function(&mut self) -> Result<String> {
        self.space();
        let start = self.position;
        self.identifier()?;
        if self.eat(b'(') {
            self.list(|p| {
                if p.peek_after_space() == Some(b'\'') {
                    p.string().map(|_| ())
                } else {
                    p.integer().map(|_| ())
                }
            })?;
            self.expect(b')', "`)`")?;
        }
        Ok(self.text[start..self.position].trim_end().to_owned())
    }

    fn enum_values(&mut self) -> Result<Vec<(String, i64)>> {
        // A name without a value continues from the one before it, starting at 1.
        let mut next: i64 = 1;
        self.list(|p| {
            p.space();
            let name = p.string()?;
            if p.eat(b'=') {
                p.space();
                next = p.integer()?;
            }
            let value = next;
            next = next.saturating_add(1);
            Ok((name, value))
        })
    }

    /// One or more items with commas between.
    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut items = vec![item(self)?];
        while self.eat(b',') {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn in_brackets<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.expect(b'(', "`(`")?;
        let value = inner(self)?;
        self.expect(b')', "`,` or `)`")?;
        Ok(value)
    }

    fn optional_brackets<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T>) -> Result<Option<T>> {
        if self.peek_after_space() == Some(b'(') {
            self.in_brackets(inner).map(Some)
        } else {
            Ok(None)
        }
    }

    /// A dotted path of identifiers, given as one name with dots between the keys.
    fn path(&mut self) -> Result<String> {
        let mut path = self.identifier()?;
        while self.peek() == Some(b'.') {
            self.position += 1;
            path.push('.');
            path.push_str(&self.identifier()?);
        }
        Ok(path)
    }

    /// A bare or quoted name.
    fn identifier(&mut self) -> Result<String> {
        match self.peek() {
            Some(quote @ (b'`' | b'"')) => self.quoted(quote),
            _ => self
                .bare_word()
                .map(str::to_owned)
                .ok_or_else(|| self.unexpected("a name")),
        }
    }

    fn bare_word(&mut self) -> Option<&'a str> {
        let rest = &self.text.as_bytes()[self.position..];
        let length = rest
            .iter()
            .take_while(|b| b.is_ascii_alphanumeric() || **b == b'_')
            .count();
        if length == 0 || rest[0].is_ascii_digit() {
            return None;
        }
        let word = &self.text[self.position..self.position + length];
        self.position += length;
        Some(word)
    }

    fn string(&mut self) -> Result<String> {
        self.space();
        if self.peek() == Some(b'\'') {
            self.quoted(b'\'')
        } else {
            Err(self.unexpected("a string in single quotes"))
        }
    }

    fn quoted(&mut self, quote: u8) -> Result<String> {
        let start = self.position;
        let mut text = String::new();
        let mut chars = self.text[start + 1..].char_indices().peekable();
        while let Some((offset, c)) = chars.next() {
            let quote = char::from(quote);
            if c == quote {
                // A doubled quote stands for one.
                if chars.peek().is_some_and(|(_, next)| *next == quote) {
                    chars.next();
                    text.push(quote);
                    continue;
                }
                self.position = start + 1 + offset + 1;
                return Ok(text);
            }
            if c != '\\' {
                text.push(c);
                continue;
            }
            let Some((_, escaped)) = chars.next() else { break };
            text.push(match escaped {
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                '0' => '\0',
                other => other,
            });
        }
        Err(invalid(start, "the quote is not closed".to_owned()))
    }

    fn integer(&mut self) -> Result<i64> {
        self.space();
        let start = self.position;
        if matches!(self.peek(), Some(b'-' | b'+')) {
            self.position += 1;
        }
        while matches!(self.peek(), Some(b) if b.is_ascii_digit()) {
            self.position += 1;
        }
        let parsed = self.text[start..self.position].parse();
        parsed.map_err(|_| {
            self.position = start;
            self.unexpected("a number")
        })
    }

    fn expect(&mut self, byte: u8, expected: &'static str) -> Result<()> {
        if self.eat(byte) {
            Ok(())
        } else {
            Err(self.unexpected(expected))
        }
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek_after_space() == Some(byte);
        if found {
            self.position += 1;
        }
        found
    }

    fn peek_after_space(&mut self) -> Option<u8> {
        self.space();
        self.peek()
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.position).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b) if b.is_ascii_whitespace()) {
            self.position += 1;
        }
    }

    fn unexpected(&self, expected: &'static str) -> ParseTypeError {
        let rest: String = self
            .text
            .get(self.position..)
            .unwrap_or_default()
            .chars()
            .take(20)
            .collect();
        let found = if rest.is_empty() {
            "the end".to_owned()
        } else {
            format!("`{rest}`")
        };
        ParseTypeError::Unexpected {
            position: self.position,
            expected,
            found,
        }
    }
}

/// ClickHouse's own bound on `FixedString`.
const MAX_FIXED_STRING: usize = 0xFF_FFFF;

/// A discriminator is one byte and 255 means NULL.
const MAX_VARIANTS: usize = 255;

fn invalid(position: usize, reason: String) -> ParseTypeError {
    ParseTypeError::Invalid { position, reason }
}

/// The enum's values in the width of its type.
fn narrow<V: TryFrom<i64>>(values: Vec<(String, i64)>, position: usize) -> Result<Vec<(String, V)>> {
    let narrow_one = |(name, value): (String, i64)| match V::try_from(value) {
        Ok(narrow) => Ok((name, narrow)),
        Err(_) => Err(invalid(
            position,
            format!("enum value {value} of '{name}' does not fit the type"),
        )),
    };
    values.into_iter().map(narrow_one).collect()
}

const SIMPLE_TYPES: [(&str, DataType); 32] = [
    ("UInt8", DataType::UInt8),
    ("UInt16", DataType::UInt16),
    ("UInt32", DataType::UInt32),
    ("UInt64", DataType::UInt64),
    ("UInt128", DataType::UInt128),
    ("UInt256", DataType::UInt256),
    ("Int8", DataType::Int8),
    ("Int16", DataType::Int16),
    ("Int32", DataType::Int32),
    ("Int64", DataType::Int64),
    ("Int128", DataType::Int128),
    ("Int256", DataType::Int256),
    ("Float32", DataType::Float32),
    ("Float64", DataType::Float64),
    ("BFloat16", DataType::BFloat16),
    ("Bool", DataType::Bool),
    ("String", DataType::String),
    ("Date", DataType::Date),
    ("Date32", DataType::Date32),
    ("Time", DataType::Time),
    ("UUID", DataType::Uuid),
    ("IPv4", DataType::Ipv4),
    ("IPv6", DataType::Ipv6),
    ("Point", DataType::Point),
    ("Ring", DataType::Ring),
    ("LineString", DataType::LineString),
    ("MultiLineString", DataType::MultiLineString),
    ("Polygon", DataType::Polygon),
    ("MultiPolygon", DataType::MultiPolygon),
    // Aliases that ClickHouse takes whatever their case; it prints the names above.
    ("bool", DataType::Bool),
    ("boolean", DataType::Bool),
    ("Boolean", DataType::Bool),
];

const FAMILIES: [&str; 21] = [
    "Decimal",
    "Decimal32",
    "Decimal64",
    "Decimal128",
    "Decimal256",
    "FixedString",
    "DateTime",
    "DateTime64",
    "Time64",
    "Enum8",
    "Enum16",
    "Enum",
    "LowCardinality",
    "Nullable",
    "Array",
    "Map",
    "Tuple",
    "Nested",
    "Variant",
    "JSON",
    "SimpleAggregateFunction",
];

fn simple_type(name: &str) -> Option<DataType> {
    SIMPLE_TYPES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, data_type)| data_type.clone())
}

fn suggest(name: &str) -> Option<&'static str> {
    let known = SIMPLE_TYPES.iter().map(|(known, _)| *known).chain(FAMILIES);
    known.into_iter().find(|known| known.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests;
