//! Bytes to numbers, without allocation and without trust.
//!
//! A number that is missing, malformed or too large is `None`: a column without a value, never 0.

/// Lines without their newline; the last one may lack it.
pub(crate) fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = memchr::memchr(b'\n', rest);
        let (line, after) = rest.split_at_checked(end.unwrap_or(rest.len()))?;
        rest = after.get(1..).unwrap_or(&[]);
        Some(line)
    })
}

/// Words between blanks, which are spaces, tabs and whatever else is no letter.
pub(crate) fn words(line: &[u8]) -> Words<'_> {
    Words { rest: line }
}

/// Words between spaces alone, for long lines: one search for all of them.
pub(crate) fn fields(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut from = 0;
    let ends = memchr::memchr_iter(b' ', line).chain(std::iter::once(line.len()));
    let field = move |end| line.get(std::mem::replace(&mut from, end + 1)..end).unwrap_or(&[]);
    ends.map(field).filter(|word| !word.is_empty())
}

/// See [`words`]. A loop of its own: `split` and `filter` took five times the instructions.
#[derive(Clone, Debug)]
pub(crate) struct Words<'a> {
    rest: &'a [u8],
}

impl<'a> Words<'a> {
    /// What stands behind the words taken so far.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        let first = self.rest.iter().position(|byte| b' ' < *byte)?;
        let from = self.rest.get(first..)?;
        let end = from.iter().position(|byte| *byte <= b' ').unwrap_or(from.len());
        let (word, rest) = from.split_at_checked(end)?;
        self.rest = rest;
        Some(word)
    }
}

/// A decimal u64 and nothing else.
#[inline]
pub(crate) fn number(word: &[u8]) -> Option<u64> {
    if word.is_empty() || DIGITS_MAX < word.len() {
        return None;
    }
    let mut value = 0_u64;
    // Nineteen digits always fit; only the twentieth may be one too many.
    let (safe, last) = word.split_at_checked(DIGITS_MAX - 1).unwrap_or((word, &[]));
    for byte in safe {
        let digit = byte.wrapping_sub(b'0');
        if 9 < digit {
            return None;
        }
        value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
    }
    for byte in last {
        let digit = byte.wrapping_sub(b'0');
        if 9 < digit {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    Some(value)
}

/// A decimal i64, as the bits of a gauge.
pub(crate) fn signed(word: &[u8]) -> Option<u64> {
    let (negative, digits) = match word.split_first() {
        Some((b'-', digits)) => (true, digits),
        _ => (false, word),
    };
    let value = i64::try_from(number(digits)?).ok()?;
    Some(if negative { -value } else { value }.cast_unsigned())
}

/// `12.34` as 1234; exactly two digits stand behind the point.
pub(crate) fn hundredths(word: &[u8]) -> Option<u64> {
    let point = word.iter().position(|byte| *byte == b'.')?;
    let (whole, fraction) = word.split_at_checked(point)?;
    let fraction = fraction.get(1..)?;
    if fraction.len() != 2 {
        return None;
    }
    number(whole)?.checked_mul(100)?.checked_add(number(fraction)?)
}

/// A whole number, or a size as `bch_hprint` of bcache writes it: `3.9M`, `0.5k`. The digit behind the
/// point was hundreds of the 1,024 parts of a unit once and is tenths today; node_exporter takes it for
/// hundreds, and so do we. No more than an i64 holds.
pub(crate) fn human(word: &[u8]) -> Option<u64> {
    let (last, rest) = word.split_last()?;
    let value = match b"kMGTPE".iter().position(|unit| unit == last) {
        None => number(word)?,
        Some(unit) => {
            let part = 1_u64 << (10 * unit);
            let mut halves = rest.splitn(2, |byte| *byte == b'.');
            let whole = number(halves.next()?)?.checked_mul(part * 1024)?;
            let hundreds = halves.next().map_or(Some(0), number)?;
            whole.checked_add(hundreds.checked_mul(part * 100)?)?
        }
    };
    i64::try_from(value).is_ok().then_some(value)
}

/// A number without its `0x`.
pub(crate) fn hexadecimal(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok().filter(|text| !text.starts_with('+'))?;
    u64::from_str_radix(text, 16).ok()
}

/// The number a text begins with, times `factor`: whole and, behind a point, tenths; what is finer is cut off.
pub(crate) fn leading(text: &[u8], factor: u64) -> Option<u64> {
    let digits = |text: &[u8]| text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (whole, rest) = text.split_at_checked(digits(text))?;
    let tenth = match rest {
        [b'.', digit @ b'0'..=b'9', ..] => u64::from(digit - b'0'),
        _ => 0,
    };
    number(whole)?.checked_mul(factor)?.checked_add(factor / 10 * tenth)
}

/// The number of the next word.
#[expect(single_use_lifetimes, reason = "`impl Iterator<Item = &[u8]>` is not yet Rust")]
pub(crate) fn next<'a>(words: &mut impl Iterator<Item = &'a [u8]>) -> Option<u64> {
    words.next().and_then(number)
}

/// Of `u64::MAX`.
const DIGITS_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (text, wanted) in [
            ("0", Some(0)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("9999999999999999999", Some(9_999_999_999_999_999_999)),
            ("000000000000000000001", None),
            ("1844674407370955161x", None),
            ("", None),
            ("-1", None),
            ("1x", None),
            ("+1", None),
        ] {
            assert_eq!(number(text.as_bytes()), wanted, "{text}");
        }
        assert_eq!(signed(b"-1"), Some((-1_i64).cast_unsigned()));
        assert_eq!(signed(b"18446744073709551615"), None);
        assert_eq!(hundredths(b"12.34"), Some(1234));
        assert_eq!(hundredths(b"0.05"), Some(5));
        assert_eq!((hundredths(b"1.2"), hundredths(b"."), hundredths(b"7")), (None, None, None));
    }

    #[test]
    fn sizes_of_bcache() {
        for (text, wanted) in [
            ("512", Some(512)),
            ("0.0k", Some(0)),
            ("0.9k", Some(900)),
            ("3k", Some(3072)),
            ("17.3M", Some(17 * 1_048_576 + 300 * 1024)),
            // As older kernels write 10 of 10.24 parts.
            ("1.10G", Some((1 << 30) + (1000 << 20))),
            ("7.9E", Some((7 << 60) + (900 << 50))),
            ("8.0E", None),
            ("9223372036854775808", None),
            ("1.18446744073709551615M", None),
            ("18446744073709551615k", None),
            ("1.2.3k", None),
            ("1.k", None),
            (".5k", None),
            ("k", None),
            ("", None),
            ("1.5", None),
            ("-1.0k", None),
            ("1.0K", None),
            ("1.0 k", None),
            ("1.0Z", None),
        ] {
            assert_eq!(human(text.as_bytes()), wanted, "{text}");
        }
        assert_eq!(human(b"\xff\xffk"), None);
    }

    #[test]
    fn lines_and_words() {
        let found: Vec<_> = lines(b"a b\n\n c\t d").collect();
        assert_eq!(found, [&b"a b"[..], b"", b" c\t d"]);
        assert_eq!(words(b" c\t d").collect::<Vec<_>>(), [b"c", b"d"]);
        assert_eq!(fields(b" ab  c").collect::<Vec<_>>(), [&b"ab"[..], b"c"]);
        assert_eq!(fields(b"ab ").collect::<Vec<_>>(), [b"ab"]);
        assert_eq!(fields(b"").count() + words(b" \t").count(), 0);
    }
}
