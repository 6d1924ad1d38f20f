//! What one Redis server keeps, and the commands that brokers send it; any other is a mistake, here or
//! there, and a panic.

use super::resp::Reply;
use std::collections::BTreeMap;

/// All keys.
#[derive(Clone, Default)]
pub(super) struct Keyspace {
    keys: BTreeMap<Vec<u8>, Entry>,
    /// The newest epoch that a script wrote by, of each fence, told by what was written and not by
    /// what the script looks at.
    pub(super) written: BTreeMap<Vec<u8>, u64>,
}

#[derive(Clone)]
struct Entry {
    value: Value,
    /// Wall time, ms.
    ends_ms: i64,
}

#[derive(Clone, PartialEq, Eq)]
enum Value {
    Text(Vec<u8>),
    Hash(BTreeMap<Vec<u8>, Vec<u8>>),
    /// Members with their scores, which are whole numbers here.
    Sorted(BTreeMap<Vec<u8>, i64>),
    /// Entries by their ids.
    Stream(BTreeMap<(i64, u64), Vec<Vec<u8>>>),
}

impl Keyspace {
    /// Carries one command out.
    pub(super) fn run(&mut self, now_ms: i64, args: &[&[u8]]) -> Reply {
        let key = args.get(1).copied().unwrap_or_default();
        if self.keys.get(key).is_some_and(|entry| entry.ends_ms <= now_ms) {
            self.keys.remove(key);
        }
        match (name(args), args.get(2..).unwrap_or_default()) {
            ("GET", []) => self.text(key),
            ("EXISTS", []) => Reply::Number(self.keys.contains_key(key).into()),
            ("SET", [text, ex, seconds]) => {
                assert_eq!(*ex, b"EX", "every key has a time to live");
                let ends_ms = now_ms + 1_000 * number(seconds);
                self.keys
                    .insert(key.to_vec(), Entry { value: Value::Text(text.to_vec()), ends_ms });
                Reply::Fine
            }
            ("DEL", []) => Reply::Number(self.keys.remove(key).is_some().into()),
            ("EXPIRE", [seconds, how @ ..]) => {
                self.expire(key, now_ms + 1_000 * number(seconds), how)
            }
            ("HSET", pairs) => {
                let hash = self.hash(key);
                for pair in pairs.chunks_exact(2) {
                    hash.insert(pair[0].to_vec(), pair[1].to_vec());
                }
                Reply::Number(0)
            }
            ("HDEL", fields) => {
                let hash = self.hash(key);
                fields.iter().for_each(|field| drop(hash.remove(*field)));
                self.tidy(key)
            }
            ("HGET", [field]) => self.field(key, field),
            ("HMGET", fields) => {
                Reply::List(fields.iter().map(|field| self.field(key, field)).collect())
            }
            ("HGETALL", []) => match self.keys.get(key).map(|entry| &entry.value) {
                Some(Value::Hash(hash)) => {
                    let both = hash.iter().flat_map(|(field, value)| [field, value]);
                    Reply::List(both.map(Reply::text).collect())
                }
                None => Reply::List(Vec::new()),
                Some(_) => wrong(),
            },
            ("XADD", how) => self.append(key, now_ms, how),
            ("XRANGE", [from, to, _, count]) => self.range(key, from, to, number(count)),
            (_, how) => self.sorted(args, key, how),
        }
    }

    /// Whether a stream has an entry with this value.
    pub(super) fn has(&self, key: &[u8], record: &[u8]) -> bool {
        let Some(Value::Stream(entries)) = self.keys.get(key).map(|entry| &entry.value) else {
            return false;
        };
        entries.values().rev().any(|fields| fields.get(1).is_some_and(|value| value == record))
    }

    /// Whether a raw block of a host covers a time.
    pub(super) fn covers(&self, host: &str, ms: i64) -> bool {
        let fields = self.keys.iter().filter_map(|(key, entry)| match &entry.value {
            Value::Hash(hash) => {
                let key = text(key);
                (key.contains(":metrics:") && key.contains(host)).then_some(hash.keys())
            }
            _ => None,
        });
        fields.flatten().any(|field| {
            let mut times = text(field).split(':').map(|part| number(part.as_bytes()));
            let (first, last) = (times.next(), times.next());
            first.zip(last).is_some_and(|(first, last)| first <= ms && ms <= last)
        })
    }

    fn text(&self, key: &[u8]) -> Reply {
        match self.keys.get(key).map(|entry| &entry.value) {
            Some(Value::Text(text)) => Reply::text(text),
            None => Reply::Nil,
            Some(_) => wrong(),
        }
    }

    fn expire(&mut self, key: &[u8], ends_ms: i64, how: &[&[u8]]) -> Reply {
        let Some(entry) = self.keys.get_mut(key) else { return Reply::Number(0) };
        let wanted = match how {
            [] => true,
            [b"NX"] => entry.ends_ms == i64::MAX,
            [b"GT"] => entry.ends_ms < ends_ms,
            _ => wrong(),
        };
        if wanted {
            entry.ends_ms = ends_ms;
        }
        Reply::Number(wanted.into())
    }

    fn field(&self, key: &[u8], field: &[u8]) -> Reply {
        match self.keys.get(key).map(|entry| &entry.value) {
            Some(Value::Hash(hash)) => hash.get(field).map_or(Reply::Nil, Reply::text),
            None => Reply::Nil,
            Some(_) => wrong(),
        }
    }

    fn hash(&mut self, key: &[u8]) -> &mut BTreeMap<Vec<u8>, Vec<u8>> {
        let Value::Hash(hash) = self.value(key, || Value::Hash(BTreeMap::new())) else { wrong() };
        hash
    }

    fn value(&mut self, key: &[u8], new: fn() -> Value) -> &mut Value {
        let new = || Entry { value: new(), ends_ms: i64::MAX };
        &mut self.keys.entry(key.to_vec()).or_insert_with(new).value
    }

    /// What is empty is not there.
    fn tidy(&mut self, key: &[u8]) -> Reply {
        let empty = self.keys.get(key).is_some_and(|entry| match &entry.value {
            Value::Hash(hash) => hash.is_empty(),
            Value::Sorted(members) => members.is_empty(),
            Value::Text(_) | Value::Stream(_) => false,
        });
        if empty {
            self.keys.remove(key);
        }
        Reply::Number(0)
    }

    /// `ZADD`, and what reads and prunes what it adds.
    fn sorted(&mut self, args: &[&[u8]], key: &[u8], how: &[&[u8]]) -> Reply {
        let Value::Sorted(members) = self.value(key, || Value::Sorted(BTreeMap::new())) else {
            wrong()
        };
        let mut listed: Vec<(i64, &[u8])> =
            members.iter().map(|(member, score)| (*score, member.as_slice())).collect();
        listed.sort_unstable();
        let reply = match (name(args), how) {
            ("ZADD", [options @ .., score, member]) => {
                let held = members.entry(member.to_vec()).or_insert(i64::MIN);
                *held = if options.is_empty() { number(score) } else { number(score).max(*held) };
                Reply::Number(1)
            }
            ("ZRANGE", [_, last, _, with @ ..]) => {
                let count = usize::try_from(number(last) + 1).expect("from the first on");
                let with = !with.is_empty();
                let one = |(score, member): (i64, &[u8])| {
                    let score = with.then(|| Reply::text(score.to_string()));
                    std::iter::once(Reply::text(member)).chain(score)
                };
                Reply::List(listed.into_iter().rev().take(count).flat_map(one).collect())
            }
            ("ZRANGEBYSCORE", [from, to, _, _, count]) => {
                let count = usize::try_from(number(count)).expect("a count");
                let (from, to) = (bound(from, 1), bound(to, -1));
                let within = listed.into_iter().filter(|(score, _)| from <= *score && *score <= to);
                Reply::List(within.take(count).map(|(_, member)| Reply::text(member)).collect())
            }
            ("ZREMRANGEBYSCORE", [from, to]) => {
                let (from, to) = (bound(from, 1), bound(to, -1));
                members.retain(|_, score| *score < from || to < *score);
                Reply::Number(0)
            }
            (name, _) => panic!("no broker sends {name}"),
        };
        self.tidy(key);
        reply
    }

    /// `XADD key MAXLEN|MINID ~ limit * field value…`; what may be cut off is cut off at once.
    fn append(&mut self, key: &[u8], now_ms: i64, how: &[&[u8]]) -> Reply {
        let [trim, _, limit, _, fields @ ..] = how else { wrong() };
        let Value::Stream(entries) = self.value(key, || Value::Stream(BTreeMap::new())) else {
            wrong()
        };
        let id = match entries.last_key_value() {
            Some((&(ms, sequence), _)) if now_ms <= ms => (ms, sequence + 1),
            _ => (now_ms, 0),
        };
        entries.insert(id, fields.iter().map(|field| field.to_vec()).collect());
        match *trim {
            b"MAXLEN" => {
                let limit = usize::try_from(number(limit)).expect("a length");
                while limit < entries.len() {
                    entries.pop_first();
                }
            }
            _ => *entries = entries.split_off(&(number(limit), 0)),
        }
        Reply::text(format!("{}-{}", id.0, id.1))
    }

    fn range(&self, key: &[u8], from: &[u8], to: &[u8], count: i64) -> Reply {
        assert_eq!(to, b"+", "up to the newest");
        let Some(entry) = self.keys.get(key) else { return Reply::List(Vec::new()) };
        let Value::Stream(entries) = &entry.value else { wrong() };
        let from = match from {
            b"-" => (i64::MIN, 0),
            [b'(', id @ ..] => {
                let (ms, sequence) = text(id).split_once('-').expect("an id");
                (
                    number(ms.as_bytes()),
                    u64::try_from(number(sequence.as_bytes())).expect("one") + 1,
                )
            }
            _ => wrong(),
        };
        let one = |(id, fields): (&(i64, u64), &Vec<Vec<u8>>)| {
            let fields = fields.iter().map(Reply::text).collect();
            Reply::List(vec![Reply::text(format!("{}-{}", id.0, id.1)), Reply::List(fields)])
        };
        let count = usize::try_from(count).expect("a count");
        Reply::List(entries.range(from..).take(count).map(one).collect())
    }
}

/// A command's.
pub(super) fn name<'a>(args: &[&'a [u8]]) -> &'a str {
    args.first().map_or("", |name| text(name))
}

/// Whether a server that is out of memory refuses it.
pub(super) fn wants_memory(name: &str) -> bool {
    matches!(name, "SET" | "HSET" | "ZADD" | "XADD")
}

/// Whether it changes anything.
pub(super) fn writes(name: &str) -> bool {
    wants_memory(name) || matches!(name, "DEL" | "HDEL" | "EXPIRE" | "ZREMRANGEBYSCORE")
}

/// `-inf`, `(17`, `17`; an open one is `inner` further in.
fn bound(bytes: &[u8], inner: i64) -> i64 {
    match bytes {
        b"-inf" => i64::MIN,
        b"+inf" => i64::MAX,
        [b'(', rest @ ..] => number(rest) + inner,
        all => number(all),
    }
}

pub(super) fn number(bytes: &[u8]) -> i64 {
    text(bytes).parse().expect("a whole number")
}

pub(super) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

fn wrong() -> ! {
    panic!("WRONGTYPE, or a command in a form that no broker sends")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `redis-cli` says it.
    #[test]
    fn commands_do_what_they_do_in_redis() {
        let mut keys = Keyspace::default();
        let mut run = |now_ms, text: &str| {
            let args: Vec<&[u8]> = text.split(' ').map(str::as_bytes).collect();
            let mut out = Vec::new();
            keys.run(now_ms, &args).pack(&mut out);
            String::from_utf8(out).expect("text").replace("\r\n", " ").trim_end().to_owned()
        };
        assert_eq!(run(0, "GET a"), "$-1");
        assert_eq!(run(0, "SET a b EX 2"), "+OK");
        assert_eq!((run(1_999, "GET a"), run(2_000, "GET a")), ("$1 b".into(), "$-1".into()));
        run(0, "HSET h x 1 y 2");
        assert_eq!(run(0, "HMGET h y z"), "*2 $1 2 $-1");
        assert_eq!(run(0, "HGETALL h"), "*4 $1 x $1 1 $1 y $1 2");
        assert_eq!(run(0, "EXPIRE h 5 GT"), ":0", "for ever is longer than anything");
        assert_eq!((run(0, "EXPIRE h 5 NX"), run(0, "EXPIRE h 9 NX")), (":1".into(), ":0".into()));
        assert_eq!((run(0, "EXPIRE h 6 GT"), run(0, "EXPIRE h 5 GT")), (":1".into(), ":0".into()));
        for member in ["ZADD z 3 c", "ZADD z 1 a", "ZADD z 2 b", "ZADD z GT 1 b"] {
            run(0, member);
        }
        assert_eq!(run(0, "ZRANGE z 0 1 REV WITHSCORES"), "*4 $1 c $1 3 $1 b $1 2");
        assert_eq!(run(0, "ZRANGEBYSCORE z (1 +inf LIMIT 0 5"), "*2 $1 b $1 c");
        run(0, "ZREMRANGEBYSCORE z -inf (3");
        assert_eq!(run(0, "ZRANGE z 0 9 REV"), "*1 $1 c");
        for row in ["a", "b", "c"] {
            run(7, &format!("XADD s MAXLEN ~ 2 * r {row}"));
        }
        assert_eq!(run(0, "XRANGE s - + COUNT 1"), "*1 *2 $3 7-1 *2 $1 r $1 b");
        assert_eq!(run(0, "XRANGE s (7-1 + COUNT 9"), "*1 *2 $3 7-2 *2 $1 r $1 c");
        run(9, "XADD s MINID ~ 8 * r d");
        assert_eq!(run(0, "XRANGE s - + COUNT 9"), "*1 *2 $3 9-0 *2 $1 r $1 d");
    }
}
