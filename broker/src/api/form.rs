//! Parameters of a request: the query string and, for a form POST, the body.

use super::ApiError;
use strobe_wire::message::ApiRequest;

/// Decoded parameters, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Form {
    pairs: Vec<(String, String)>,
}

/// Parameters of one request.
const PAIRS_MAX: usize = 1000;

impl Form {
    /// Of a request. The body's parameters come first, as Go's `ParseForm` has them.
    ///
    /// # Errors
    /// What cannot be decoded.
    pub fn of(request: &ApiRequest) -> Result<Self, String> {
        let mut form = Self::default();
        let kind = request.content_type.split(';').next().unwrap_or("").trim();
        if request.method == "POST" && !request.body.is_empty() {
            if !kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
                return Err(format!("a body of type {kind:?}; a form is needed"));
            }
            let text = str::from_utf8(&request.body).map_err(|_| "the body is not UTF-8")?;
            form.read(text)?;
        }
        form.read(&request.query)?;
        Ok(form)
    }

    /// The first value of a name, unless it is empty.
    #[must_use]
    pub fn optional(&self, name: &str) -> Option<&str> {
        let pair = self.pairs.iter().find(|pair| pair.0 == name)?;
        Some(pair.1.as_str()).filter(|value| !value.is_empty())
    }

    /// All values of a name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |pair| pair.0 == name).map(|pair| pair.1.as_str())
    }

    pub(super) fn required(&self, name: &str) -> Result<&str, ApiError> {
        self.optional(name)
            .ok_or_else(|| ApiError::Bad(format!("invalid parameter {name:?}: it is missing")))
    }

    fn read(&mut self, text: &str) -> Result<(), String> {
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            self.pairs.push((decode(name)?, decode(value)?));
            if PAIRS_MAX < self.pairs.len() {
                return Err(format!("more than {PAIRS_MAX} parameters"));
            }
        }
        Ok(())
    }
}

/// `+` is a space, `%41` an `A`.
fn decode(text: &str) -> Result<String, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => match (bytes.next().and_then(digit), bytes.next().and_then(digit)) {
                (Some(high), Some(low)) => high * 16 + low,
                _ => return Err(format!("invalid percent-encoding in {text:?}")),
            },
            other => other,
        });
    }
    String::from_utf8(out).map_err(|_| format!("{text:?} is not UTF-8"))
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_decode() {
        let check = |query: &str, wanted: Result<&[(&str, &str)], &str>| {
            let request = ApiRequest { query: query.to_owned(), ..ApiRequest::default() };
            match (Form::of(&request), wanted) {
                (Ok(form), Ok(wanted)) => {
                    let got: Vec<_> =
                        form.pairs.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
                    assert_eq!(got, wanted);
                }
                (Err(why), Err(wanted)) => assert!(why.contains(wanted), "{why}"),
                (got, _) => panic!("{query}: {got:?}"),
            }
        };
        check("a=1&b=x+y%2Bz&&c", Ok(&[("a", "1"), ("b", "x y+z"), ("c", "")]));
        check("match[]=a&match%5B%5D=b", Ok(&[("match[]", "a"), ("match[]", "b")]));
        check("a=%4", Err("percent"));
        check("a=%zz", Err("percent"));
        check("a=%ff", Err("UTF-8"));
    }
}
