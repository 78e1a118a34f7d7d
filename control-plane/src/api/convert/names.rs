//! Names that come from AWS and ClickHouse: what they may be made of.

use super::violations::quoted;

/// Longest name of a database, table or column. ClickHouse makes file names of them, which end at 255 bytes after escaping;
/// the default name of the error table adds 15.
pub const MAX_IDENTIFIER_BYTES: usize = 200;
/// Databases that belong to ClickHouse.
const RESERVED_DATABASES: [&str; 3] = ["system", "information_schema", "_temporary_and_external_tables"];

/// Checks a name of a database, table or column. Any text goes, because it is always quoted, except what would make a log
/// line or a file name lie.
///
/// # Errors
/// What is wrong with it.
pub fn identifier(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("must not be empty".to_owned());
    }
    if name.len() > MAX_IDENTIFIER_BYTES {
        return Err(format!(
            "is {} bytes long; at most {MAX_IDENTIFIER_BYTES} are allowed",
            name.len()
        ));
    }
    if name.chars().any(|c| c.is_control() || is_invisible(c)) {
        return Err(format!("{} contains a control or an invisible character", quoted(name)));
    }
    Ok(())
}

/// Checks the name of a database that a pipe writes to.
///
/// # Errors
/// What is wrong with it.
pub fn database(name: &str) -> Result<(), String> {
    identifier(name)?;
    if RESERVED_DATABASES
        .iter()
        .any(|reserved| name.eq_ignore_ascii_case(reserved))
    {
        return Err(format!(
            "{} belongs to ClickHouse itself; choose another database",
            quoted(name)
        ));
    }
    Ok(())
}

/// Characters that change how the text around them is shown, or that show as nothing.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Checks a Kinesis stream name.
///
/// # Errors
/// What is wrong with it.
pub fn stream_name(name: &str) -> Result<(), String> {
    let valid = (1..=128).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if valid {
        Ok(())
    } else {
        Err(format!(
            "{} is not a stream name: use 1 to 128 of a-z, A-Z, 0-9, '_', '.' and '-'",
            quoted(name)
        ))
    }
}

/// Checks an AWS region, such as `eu-central-1` or `us-gov-west-1`.
///
/// # Errors
/// What is wrong with it.
pub fn region(name: &str) -> Result<(), String> {
    let parts: Vec<&str> = name.split('-').collect();
    let word = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase());
    let valid = name.len() <= 32
        && matches!(parts.as_slice(), [first, middle @ .., last]
            if first.len() <= 4 && word(first) && !middle.is_empty() && middle.iter().all(word)
                && (1..=2).contains(&last.len()) && last.bytes().all(|b| b.is_ascii_digit()));
    if valid {
        Ok(())
    } else {
        Err(format!("{} is not an AWS region such as eu-central-1", quoted(name)))
    }
}

/// The parts of an ARN: `arn:partition:service:region:account:resource`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arn<'a> {
    /// Region; empty for IAM.
    pub region: &'a str,
    /// What follows the account.
    pub resource: &'a str,
}

fn arn<'a>(text: &'a str, service: &str) -> Option<Arn<'a>> {
    let mut parts = text.splitn(6, ':');
    let mut next = || parts.next();
    let (prefix, partition, found) = (next()?, next()?, next()?);
    let (region, account, resource) = (next()?, next()?, next()?);
    let partition_valid = partition.len() <= 16
        && (partition == "aws" || partition.starts_with("aws-"))
        && partition
            .split('-')
            .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase()));
    let account_valid = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
    (prefix == "arn" && partition_valid && found == service && account_valid).then_some(Arn { region, resource })
}

/// Parses the ARN of a stream; returns its region and the stream's name.
///
/// # Errors
/// What is wrong with it.
pub fn stream_arn(text: &str) -> Result<(&str, &str), String> {
    let parsed = arn(text, "kinesis").and_then(|arn| {
        let name = arn.resource.strip_prefix("stream/")?;
        (region(arn.region).is_ok() && stream_name(name).is_ok()).then_some((arn.region, name))
    });
    parsed.ok_or_else(|| {
        format!(
            "{} is not the ARN of a stream: expected arn:aws:kinesis:REGION:ACCOUNT:stream/NAME",
            quoted(text)
        )
    })
}

/// Checks the ARN of an IAM role.
///
/// # Errors
/// What is wrong with it.
pub fn role_arn(text: &str) -> Result<(), String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"+=,.@_-/".contains(&b);
    let valid = text.len() <= 2048
        && arn(text, "iam").is_some_and(|arn| {
            let path = arn.resource.strip_prefix("role/");
            arn.region.is_empty()
                && path.is_some_and(|path| {
                    path.bytes().all(allowed)
                        && path
                            .rsplit('/')
                            .next()
                            .is_some_and(|name| (1..=64).contains(&name.len()))
                        && !path.contains("//")
                        && !path.starts_with('/')
                })
        });
    if valid {
        Ok(())
    } else {
        Err(format!(
            "{} is not the ARN of a role: expected arn:aws:iam::ACCOUNT:role/NAME",
            quoted(text)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arns() {
        assert_eq!(
            stream_arn("arn:aws:kinesis:us-east-1:000000000000:stream/events"),
            Ok(("us-east-1", "events"))
        );
        assert!(stream_arn("arn:aws-us-gov:kinesis:us-gov-west-1:123456789012:stream/a.b_c-d").is_ok());
        for bad in [
            "",
            "events",
            "arn:aws:kinesis:us-east-1:000000000000:stream/",
            "arn:aws:kinesis:us-east-1:000000000000:stream/*",
            "arn:aws:kinesis:us-east-1:000000000000:stream/events\n",
            "arn:aws:kinesis:us-east-1:000000000000:stream/events/consumer/x:1",
            "arn:aws:kinesis:us-east-1:0000:stream/events",
            "arn:aws:kinesis::000000000000:stream/events",
            "arn:aws:sqs:us-east-1:000000000000:stream/events",
            "arn:evil:kinesis:us-east-1:000000000000:stream/events",
            "ARN:aws:kinesis:us-east-1:000000000000:stream/events",
        ] {
            assert!(stream_arn(bad).is_err(), "{bad:?}");
        }
        for good in [
            "arn:aws:iam::123456789012:role/reader",
            "arn:aws-cn:iam::123456789012:role/a/b/reader@x",
        ] {
            assert_eq!(role_arn(good), Ok(()), "{good}");
        }
        for bad in [
            "arn:aws:iam::123456789012:role/*",
            "arn:aws:iam::123456789012:role/reader\n",
            "arn:other:iam::123456789012:role/reader",
            "arn:aws:iam::123456789012:user/reader",
            "arn:aws:iam::123456789012:role/",
            "arn:aws:iam:us-east-1:123456789012:role/reader",
            "reader",
        ] {
            assert!(role_arn(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn regions() {
        for good in [
            "eu-central-1",
            "us-east-1",
            "us-gov-west-1",
            "ap-southeast-12",
            "us-iso-east-1",
        ] {
            assert_eq!(region(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "eu",
            "eu-central",
            "EU-CENTRAL-1",
            "eu-central-1\n",
            "eu-central-1.evil.example/",
            "1-2-3",
        ] {
            assert!(region(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn identifiers() {
        for good in [
            "events",
            "a`; DROP TABLE x--",
            "back\\slash",
            "db.t",
            "Ereignisse ä",
            "日本",
        ] {
            assert_eq!(identifier(good), Ok(()), "{good}");
        }
        for bad in ["", "a\0b", "a\nb", "abc\u{202e}", "a\u{200b}b", &"x".repeat(65_536)] {
            assert!(identifier(bad).is_err(), "{bad:?}");
        }
        for bad in ["system", "System", "INFORMATION_SCHEMA"] {
            assert!(database(bad).is_err(), "{bad}");
        }
    }
}
