//! Two versions of the fleet's configuration beside each other: which lines differ, and whom that concerns.

use strobe_wire::fleet::Document;
use strobe_wire::message::{Hello, HostInfo};

/// What is another value for a host or a broker, by key; nothing is not set.
pub(crate) type Changes = Vec<(String, Option<String>, Option<String>)>;

/// A host, and what would change for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Concerned {
    pub(crate) hello: Hello,
    pub(crate) connected: bool,
    pub(crate) changes: Changes,
}

/// The hosts that a change concerns.
pub(crate) fn concerned(before: &Document, after: &Document, hosts: &[HostInfo]) -> Vec<Concerned> {
    let mut all = Vec::new();
    for info in hosts {
        let changes = changes(&before.of_host(&info.hello), &after.of_host(&info.hello));
        if !changes.is_empty() {
            let (hello, connected) = (info.hello.clone(), info.connected);
            all.push(Concerned { hello, connected, changes });
        }
    }
    all.sort_by(|a, b| a.hello.instance.cmp(&b.hello.instance));
    all
}

/// What differs.
pub(crate) fn changes(before: &[(String, String)], after: &[(String, String)]) -> Changes {
    let find = |of: &[(String, String)], key: &str| {
        of.iter().find(|(name, _)| name == key).map(|(_, text)| text.clone())
    };
    let mut keys: Vec<&String> = before.iter().chain(after).map(|(key, _)| key).collect();
    keys.sort_unstable();
    keys.dedup();
    let both = keys.into_iter().map(|key| (key.clone(), find(before, key), find(after, key)));
    both.filter(|(_, before, after)| before != after).collect()
}

/// The lines of `after` and those of `before` that are not in it, each behind a sign; only those that
/// differ, and [`AROUND`] about them.
pub(crate) fn diff(before: &str, after: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let first = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let (a_rest, b_rest) = (a.get(first..).unwrap_or(&[]), b.get(first..).unwrap_or(&[]));
    let last = a_rest.iter().rev().zip(b_rest.iter().rev()).take_while(|(a, b)| a == b).count();
    let a_mid = a_rest.get(..a_rest.len() - last).unwrap_or(&[]);
    let b_mid = b_rest.get(..b_rest.len() - last).unwrap_or(&[]);
    let mut lines: Vec<(char, &str)> = Vec::new();
    lines.extend(a.iter().take(first).map(|line| (' ', *line)));
    lines.extend(between(a_mid, b_mid));
    lines.extend(a.iter().skip(a.len() - last).map(|line| (' ', *line)));
    let near = |at: usize| {
        let from = at.saturating_sub(AROUND);
        lines.iter().skip(from).take(at - from + AROUND + 1).any(|(sign, _)| *sign != ' ')
    };
    let (mut out, mut skipped) = (String::new(), false);
    for (at, (sign, line)) in lines.iter().enumerate() {
        if near(at) {
            if std::mem::take(&mut skipped) {
                out.push_str("  …\n");
            }
            out.push_str(&format!("{sign} {line}\n"));
        } else {
            skipped = true;
        }
    }
    out
}

/// The longest common lines stay; where that would be too much work, all go and all come.
fn between<'t>(a: &[&'t str], b: &[&'t str]) -> Vec<(char, &'t str)> {
    if CELLS_MAX < a.len().saturating_mul(b.len()) {
        let gone = a.iter().map(|line| ('-', *line));
        return gone.chain(b.iter().map(|line| ('+', *line))).collect();
    }
    let width = b.len() + 1;
    let mut common = vec![0_u32; (a.len() + 1) * width];
    let cell = |common: &[u32], i: usize, j: usize| common.get(i * width + j).copied().unwrap_or(0);
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            let best = match a.get(i) == b.get(j) {
                true => 1 + cell(&common, i + 1, j + 1),
                false => cell(&common, i + 1, j).max(cell(&common, i, j + 1)),
            };
            if let Some(place) = common.get_mut(i * width + j) {
                *place = best;
            }
        }
    }
    let (mut i, mut j, mut out) = (0, 0, Vec::new());
    loop {
        match (a.get(i), b.get(j)) {
            (Some(old), Some(new)) if old == new => {
                out.push((' ', *old));
                (i, j) = (i + 1, j + 1);
            }
            (Some(old), new)
                if new.is_none() || cell(&common, i, j + 1) <= cell(&common, i + 1, j) =>
            {
                out.push(('-', *old));
                i += 1;
            }
            (_, Some(new)) => {
                out.push(('+', *new));
                j += 1;
            }
            _ => return out,
        }
    }
}

const AROUND: usize = 2;
const CELLS_MAX: usize = 1 << 22;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_told() {
        let before = "a\nb\nc\nd\ne\nf\ng\nh";
        assert_eq!(diff(before, before), "");
        assert_eq!(
            diff(before, "a\nb\nc\nD\ne\nf\ng\nh"),
            "  b\n  c\n- d\n+ D\n  e\n  f\n".replacen("  b", "  …\n  b", 1)
        );
        assert_eq!(diff("", "x\ny"), "+ x\n+ y\n");
        assert_eq!(diff("x\ny", ""), "- x\n- y\n");
        assert_eq!(diff("a\nx\nb\ny", "a\nb\nz\ny"), "  a\n- x\n  b\n+ z\n  y\n");
        let many: String = (0..5_000).map(|n| format!("{n}\n")).collect();
        assert_eq!(diff(&many, &many.replace('1', "one")).lines().next(), Some("  0"));
    }

    #[test]
    fn whom_a_change_concerns() {
        let read = |text| Document::read(text).unwrap();
        let before = read("[agent]\ninterval = \"1s\"");
        let after = read("[agent]\ninterval = \"1s\"\n[host.web.agent]\nscores = false");
        let host = |instance: &str| HostInfo {
            hello: Hello { instance: instance.to_owned(), ..Hello::default() },
            ..HostInfo::default()
        };
        let found = concerned(&before, &after, &[host("db"), host("web")]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].hello.instance, "web");
        let wanted = ("agent.scores".to_owned(), None, Some("false".to_owned()));
        assert_eq!(found[0].changes, [wanted]);
    }
}
