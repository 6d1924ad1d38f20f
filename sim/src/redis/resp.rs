//! Redis's wire format (RESP 2): commands come in, replies go out.

/// What a server says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Reply {
    Nil,
    Fine,
    Number(i64),
    Text(Vec<u8>),
    List(Vec<Self>),
    /// Its first word is a code.
    Refused(String),
}

impl Reply {
    pub(super) fn text(text: impl AsRef<[u8]>) -> Self {
        Self::Text(text.as_ref().to_vec())
    }

    /// As bytes.
    pub(super) fn pack(&self, out: &mut Vec<u8>) {
        let line = |out: &mut Vec<u8>, text: &str| {
            out.extend_from_slice(text.as_bytes());
            out.extend_from_slice(b"\r\n");
        };
        match self {
            Self::Nil => line(out, "$-1"),
            Self::Fine => line(out, "+OK"),
            Self::Number(number) => line(out, &format!(":{number}")),
            Self::Text(text) => {
                line(out, &format!("${}", text.len()));
                out.extend_from_slice(text);
                out.extend_from_slice(b"\r\n");
            }
            Self::List(list) => {
                line(out, &format!("*{}", list.len()));
                list.iter().for_each(|reply| reply.pack(out));
            }
            Self::Refused(why) => line(out, &format!("-{why}")),
        }
    }
}

/// Commands, each a list of arguments.
pub(super) fn commands(mut bytes: &[u8]) -> Vec<Vec<&[u8]>> {
    let mut commands = Vec::new();
    while !bytes.is_empty() {
        let count = number(b'*', &mut bytes);
        let mut args = Vec::with_capacity(count);
        for _ in 0..count {
            let length = number(b'$', &mut bytes);
            args.push(&bytes[..length]);
            bytes = &bytes[length + 2..];
        }
        commands.push(args);
    }
    commands
}

/// `*3\r\n`.
fn number(kind: u8, bytes: &mut &[u8]) -> usize {
    assert_eq!(bytes[0], kind, "a command is a list of texts");
    let end = bytes.iter().position(|byte| *byte == b'\r').expect("a line ends");
    let text = std::str::from_utf8(&bytes[1..end]).expect("a number");
    *bytes = &bytes[end + 2..];
    text.parse().expect("a number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_and_replies_written() {
        let bytes = b"*2\r\n$3\r\nGET\r\n$4\r\na\r\nb\r\n*1\r\n$4\r\nROLE\r\n";
        assert_eq!(commands(bytes), [vec![&b"GET"[..], b"a\r\nb"], vec![&b"ROLE"[..]]]);
        let mut out = Vec::new();
        let list = vec![Reply::Nil, Reply::Number(-3), Reply::text("x"), Reply::Fine];
        Reply::List(list).pack(&mut out);
        Reply::Refused("ERR no".to_owned()).pack(&mut out);
        assert_eq!(out, b"*4\r\n$-1\r\n:-3\r\n$1\r\nx\r\n+OK\r\n-ERR no\r\n");
    }
}
