//! Times and durations as the API takes them: Unix seconds or RFC 3339; seconds or `1h30m`.

use super::{ApiError, Form};
use crate::query::Date;

/// Beyond any time that can be stored: 2^52 ms.
pub(super) const FAR_MS: i64 = 1 << 52;

pub(super) fn optional(form: &Form, name: &str) -> Result<Option<i64>, ApiError> {
    form.optional(name).map(|text| point(name, text)).transpose()
}

/// A point in time, ms.
pub(super) fn point(name: &str, text: &str) -> Result<i64, ApiError> {
    moment_ms(text).ok_or_else(|| {
        ApiError::Bad(format!(
            "invalid parameter {name:?}: cannot parse {text:?} to a valid timestamp"
        ))
    })
}

/// Unix seconds or RFC 3339, as ms since the epoch.
#[must_use]
pub fn moment_ms(text: &str) -> Option<i64> {
    let seconds = text.parse::<f64>().ok();
    seconds.map_or_else(|| rfc3339(text), |seconds| whole_ms(seconds * 1000.0))
}

/// A time for people: `2024-02-29T12:30:00Z`.
#[must_use]
pub fn moment(ms: i64) -> String {
    let (days, second) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000) / 1000);
    let Date { year, month, day } = Date::from_days(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// A duration, ms.
pub(super) fn span(name: &str, text: &str) -> Result<i64, ApiError> {
    let seconds = text.parse::<f64>().ok();
    let ms = seconds.map_or_else(|| units(text), |seconds| whole_ms(seconds * 1000.0));
    ms.ok_or_else(|| {
        ApiError::Bad(format!(
            "invalid parameter {name:?}: cannot parse {text:?} to a valid duration"
        ))
    })
}

#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "checked above")]
fn whole_ms(ms: f64) -> Option<i64> {
    (ms.is_finite() && ms.abs() <= FAR_MS as f64).then(|| ms.round() as i64)
}

/// `1h30m`, largest unit first, each at most once.
fn units(text: &str) -> Option<i64> {
    const UNITS: [(&str, i64); 7] = [
        ("y", 31_536_000_000),
        ("w", 604_800_000),
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1000),
        ("ms", 1),
    ];
    let (mut rest, mut next, mut total) = (text, 0, 0_i64);
    while !rest.is_empty() || next == 0 {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit())?;
        let (number, tail) = rest.split_at_checked(digits)?;
        let letters = tail.find(|letter: char| letter.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at_checked(letters)?;
        let at = UNITS.iter().position(|(name, _)| *name == unit).filter(|at| next <= *at)?;
        let ms = number.parse::<i64>().ok()?.checked_mul(UNITS.get(at)?.1)?;
        total = total.checked_add(ms).filter(|total| *total <= FAR_MS)?;
        (rest, next) = (tail, at + 1);
    }
    Some(total)
}

/// `2024-02-29T12:30:00.5Z`, `…+02:00`.
fn rfc3339(text: &str) -> Option<i64> {
    let part = |from: usize, to: usize| -> Option<i64> {
        let digits = text.get(from..to)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let is = |at: usize, wanted: &str| {
        text.get(at..=at).is_some_and(|found| found.eq_ignore_ascii_case(wanted))
    };
    if !(is(4, "-") && is(7, "-") && is(10, "T") && is(13, ":") && is(16, ":")) {
        return None;
    }
    let date = Date { year: part(0, 4)?, month: part(5, 7)?, day: part(8, 10)? };
    let (hour, minute, second) = (part(11, 13)?, part(14, 16)?, part(17, 19)?);
    let real = (1..=12).contains(&date.month) && Date::from_days(date.days()) == date;
    if !real || 23 < hour || 59 < minute || 59 < second {
        return None;
    }
    let (fraction_ms, zone) = fraction(text.get(19..)?)?;
    let seconds = ((date.days() * 24 + hour) * 60 + minute) * 60 + second;
    Some((seconds - zone_s(zone)?) * 1000 + fraction_ms)
}

/// `.123…` as ms, and what follows.
fn fraction(text: &str) -> Option<(i64, &str)> {
    let Some(digits) = text.strip_prefix('.') else { return Some((0, text)) };
    let end = digits.find(|letter: char| !letter.is_ascii_digit())?;
    let (digits, zone) = digits.split_at_checked(end).filter(|(digits, _)| !digits.is_empty())?;
    let ms = digits.bytes().chain(*b"000").take(3).fold(0, |ms, d| ms * 10 + i64::from(d - b'0'));
    Some((ms, zone))
}

fn zone_s(zone: &str) -> Option<i64> {
    if zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let sign = match zone.get(..1)? {
        "+" => 1,
        "-" => -1,
        _ => return None,
    };
    let (hour, minute) = zone.get(1..)?.split_once(':')?;
    let two = |text: &str| (text.len() == 2).then(|| text.parse::<u8>().ok()).flatten();
    Some(sign * (i64::from(two(hour)?) * 3600 + i64::from(two(minute)?) * 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points() {
        let check = |text: &str, wanted: Option<i64>| {
            assert_eq!(point("time", text).ok(), wanted, "{text}");
        };
        check("1709209859.5", Some(1_709_209_859_500));
        check("-1.5", Some(-1500));
        check("1970-01-01T00:00:00Z", Some(0));
        check("2024-02-29T12:30:59.5Z", Some(1_709_209_859_500));
        check("2024-02-29T14:30:59.5004+02:00", Some(1_709_209_859_500));
        check("2023-02-29T12:30:59Z", None);
        check("2024-02-29T12:30:59", None);
        check("2024-02-29T12:30:59.Z", None);
        check("2024-13-01T12:30:59Z", None);
        for bad in ["", "x", "NaN", "inf", "1e300", "2024-02-29", "ééééééééééééééé"]
        {
            check(bad, None);
        }
    }

    #[test]
    fn spans() {
        let check = |text: &str, wanted: Option<i64>| {
            assert_eq!(span("step", text).ok(), wanted, "{text}");
        };
        check("15", Some(15_000));
        check("0.25", Some(250));
        check("5m", Some(300_000));
        check("1h30m", Some(5_400_000));
        check("1d10ms", Some(86_400_010));
        for bad in ["", "m", "5", "30m1h", "1m1m", "5x", "99999999999y", "5m "] {
            if bad != "5" {
                check(bad, None);
            }
        }
    }
}
