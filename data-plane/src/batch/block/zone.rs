//! Time zones of columns: from a wall clock reading to an instant.
//!
//! The tables are the ones compiled into the program, so that every worker, on every machine, reads a text the same way.

use std::sync::Arc;

use jiff::civil;
use jiff::tz::{Disambiguation, TimeZone, TimeZoneDatabase};

/// The zone in which a text without an offset is read.
#[derive(Debug, Clone)]
pub(crate) enum Zone {
    /// No table needed.
    Utc,
    /// Any other zone.
    Named(Arc<TimeZone>),
}

impl Zone {
    /// The zone of that name, if there is one.
    pub(crate) fn named(name: &str) -> Option<Zone> {
        if ["UTC", "Etc/UTC", "GMT", "Etc/GMT", "Zulu"]
            .iter()
            .any(|utc| name.eq_ignore_ascii_case(utc))
        {
            return Some(Zone::Utc);
        }
        let zone = TimeZoneDatabase::bundled().get(name).ok()?;
        Some(Zone::Named(Arc::new(zone)))
    }

    /// How far its clocks are ahead of UTC at an instant, in seconds.
    pub(super) fn offset_at(&self, second: i64) -> i64 {
        match self {
            Zone::Utc => 0,
            Zone::Named(zone) => {
                jiff::Timestamp::from_second(second).map_or(0, |instant| i64::from(zone.to_offset(instant).seconds()))
            }
        }
    }

    /// Seconds since 1970 of a wall clock reading, given as days since 1970-01-01 and seconds since midnight (which may
    /// pass the end of the day). A reading that the clock skips or shows twice is resolved as ClickHouse does: with the
    /// later offset where the clock is put forward, with the earlier one where it is put back.
    pub(crate) fn instant(&self, days: i64, second_of_day: i64) -> i64 {
        let as_utc = days * 86_400 + second_of_day;
        match self {
            Zone::Utc => as_utc,
            Zone::Named(zone) => as_utc - offset(zone, as_utc),
        }
    }
}

/// The zone's offset in seconds at the wall clock reading that is `as_utc` seconds after 1970-01-01 00:00:00.
fn offset(zone: &TimeZone, as_utc: i64) -> i64 {
    let days = as_utc.div_euclid(86_400);
    let second = as_utc.rem_euclid(86_400);
    let Some(reading) = reading(days, second) else { return 0 };
    let ambiguous = zone.to_ambiguous_timestamp(reading);
    match ambiguous.disambiguate(Disambiguation::Earlier) {
        Ok(instant) => as_utc - instant.as_second(),
        Err(_) => 0,
    }
}

fn reading(days: i64, second: i64) -> Option<civil::DateTime> {
    let (year, month, day) = civil_from_days(days)?;
    let (hour, minute, second) = ((second / 3600) as i8, (second / 60 % 60) as i8, (second % 60) as i8);
    civil::DateTime::new(year, month, day, hour, minute, second, 0).ok()
}

/// Days since 1970-01-01 of a date of the proleptic Gregorian calendar; `None` if there is no such date.
pub(crate) fn days_from_civil(year: i64, month: u32, day: u32) -> Option<i64> {
    if !(1..=12).contains(&month) || day == 0 || day > days_in_month(year, month) {
        return None;
    }
    // Years start in March here, so that the leap day is the last one.
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted.rem_euclid(400);
    let day_of_year = (153 * ((i64::from(month) + 9) % 12) + 2) / 5 + i64::from(day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Some(era * 146_097 + day_of_era - 719_468)
}

fn days_in_month(year: i64, month: u32) -> u32 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// The date that is `days` after 1970-01-01, if its year has at most four digits.
pub(super) fn civil_from_days(days: i64) -> Option<(i16, i8, i8)> {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    Some((
        i16::try_from(year).ok()?,
        i8::try_from(month).ok()?,
        i8::try_from(day).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_days_agree() {
        assert_eq!(days_from_civil(1970, 1, 1), Some(0));
        assert_eq!(days_from_civil(2024, 2, 29), Some(19_782));
        assert_eq!(days_from_civil(2023, 2, 29), None);
        assert_eq!(days_from_civil(1900, 1, 1), Some(-25_567));
        assert_eq!(days_from_civil(2299, 12, 31), Some(120_529));
        for days in (-720_000..2_900_000).step_by(97) {
            if let Some((year, month, day)) = civil_from_days(days) {
                assert_eq!(days_from_civil(i64::from(year), month as u32, day as u32), Some(days));
            }
        }
    }

    #[test]
    fn wall_clocks_are_resolved_as_clickhouse_does() {
        let new_york = Zone::named("America/New_York").unwrap();
        let instant =
            |y, m, d, h: i64, min: i64| new_york.instant(days_from_civil(y, m, d).unwrap(), h * 3600 + min * 60);
        assert_eq!(instant(2024, 7, 1, 12, 0), 1_719_849_600);
        // Skipped: 02:30 does not exist, it reads as 01:30 EST. Repeated: the first 01:30 (EDT).
        assert_eq!(instant(2024, 3, 10, 2, 30), 1_710_052_200);
        assert_eq!(instant(2024, 11, 3, 1, 30), 1_730_611_800);
        assert!(Zone::named("Mars/Olympus").is_none());
        assert!(matches!(Zone::named("UTC"), Some(Zone::Utc)));
    }
}
