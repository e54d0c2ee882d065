//! Bytes of a body behind an answer that has none (RFC 9110 section 6.4.1: to HEAD, 204, 304). Some targets
//! send them all the same, and the next answer on the connection would be read as if it began with them. And the status
//! of each answer, also where the rest of its head is not HTTP. It must not know anything else of HTTP.

use whrelay_core::limits;

/// What an answer begins with.
const BEGIN: &[u8] = b"HTTP/";
/// A version, as in `HTTP/1.1`.
const VERSION: usize = b"HTTP/1.1".len();
/// So many bytes of a status line are read: the version, a space, the code, and what comes next.
const STATUS_END: usize = VERSION + 1 + 3 + 1;

/// Reads along on one connection, and takes out what belongs to no answer.
#[derive(Debug, Default)]
pub(crate) struct Strays {
    state: State,
    /// Whether the request is one to which answers have no body.
    head: bool,
    /// Bytes taken out since it began.
    taken: usize,
    /// The status of the last answer to it.
    status: Option<u16>,
}

#[derive(Debug)]
enum State {
    /// Before an answer, or in its status line: as much of it as has come.
    Status(Beginning),
    /// In the head of an answer without a body; or of one that another follows.
    Head {
        follows: bool,
        /// Whether nothing but its end has come on this line.
        line_is_empty: bool,
    },
    /// In an answer with a body, or in what is no HTTP/1: that is for others to read.
    Rest,
    /// Behind an answer without a body, up to the next one.
    Between,
}

impl Default for State {
    fn default() -> Self {
        Self::Status(Beginning::default())
    }
}

impl Strays {
    /// A request begins with these bytes.
    pub(crate) fn request(&mut self, bytes: &[u8]) {
        (self.head, self.taken, self.status) = (bytes.starts_with(b"HEAD "), 0, None);
        if !matches!(self.state, State::Between) {
            self.state = State::default();
        }
    }

    /// The status of the answer that is being read, or was.
    pub(crate) fn status(&self) -> Option<u16> {
        self.status
    }

    /// Whether a connection is worth no more reading: strays come without end.
    pub(crate) fn is_flooded(&self) -> bool {
        self.taken > limits::READ_ANSWER
    }

    /// Moves what belongs to answers to the front. Says how many bytes that is.
    pub(crate) fn take_out(&mut self, bytes: &mut [u8]) -> usize {
        let mut start = 0;
        if matches!(self.state, State::Between) {
            start = begin_of(bytes);
            if start == bytes.len() {
                self.taken += bytes.len();
                return 0;
            }
            self.state = State::default();
        }
        let (mut end, mut at) = (bytes.len(), start);
        while at < bytes.len() {
            match &mut self.state {
                State::Rest => break,
                State::Between => {
                    end = at;
                    break;
                }
                State::Status(line) => {
                    at += line.take(&bytes[at..]);
                    if let Some((next, status)) = line.read(self.head) {
                        self.state = next;
                        self.status = status.or(self.status);
                    }
                }
                State::Head {
                    follows,
                    line_is_empty,
                } => {
                    let rest = &bytes[at..];
                    let end = rest.iter().position(|byte| *byte == b'\n');
                    let line = &rest[..end.unwrap_or(rest.len())];
                    *line_is_empty &= line.iter().all(|byte| *byte == b'\r');
                    at += line.len();
                    if end.is_some() {
                        at += 1;
                        match (*line_is_empty, *follows) {
                            (true, true) => self.state = State::default(),
                            (true, false) => self.state = State::Between,
                            (false, _) => *line_is_empty = true,
                        }
                    }
                }
            }
        }
        bytes.copy_within(start..end, 0);
        self.taken += bytes.len() - (end - start);
        end - start
    }
}

/// The beginning of a status line.
#[derive(Debug, Default)]
struct Beginning {
    /// With room for a second space, which some send.
    bytes: [u8; STATUS_END + 1],
    length: usize,
}

impl Beginning {
    fn needed(&self) -> usize {
        let has_second = self.length > VERSION + 1 && self.bytes[VERSION + 1] == b' ';
        STATUS_END + usize::from(has_second)
    }

    /// Takes as much as it needs. Says how many bytes that is.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let needed = self.needed();
        let room = &mut self.bytes[self.length..needed];
        let taken = bytes.len().min(room.len());
        room[..taken].copy_from_slice(&bytes[..taken]);
        self.length += taken;
        taken
    }

    /// What comes behind it, once enough of it is there. An answer that another follows has no code of its own.
    fn read(&self, head: bool) -> Option<(State, Option<u16>)> {
        let line = &self.bytes[..self.length];
        let rest = Some((State::Rest, None));
        if !BEGIN.iter().zip(line).all(|(wanted, byte)| wanted == byte) {
            return rest;
        }
        if line.len() < self.needed() {
            return None;
        }
        let behind = &line[VERSION..];
        let spaces = behind.iter().take_while(|byte| **byte == b' ').count();
        let behind = &behind[spaces..];
        let (Some(code), Some(end)) = (behind.get(..3), behind.get(3)) else {
            return rest;
        };
        let code_of = |code| std::str::from_utf8(code).ok()?.parse::<u16>().ok();
        let is_whole = spaces > 0 && matches!(end, b' ' | b'\r' | b'\n');
        let Some(status) = code_of(code).filter(|_| is_whole) else {
            return rest;
        };
        let follows = code[0] == b'1';
        let bodiless = head || follows || matches!(status, 204 | 304);
        let state = match bodiless {
            true => State::Head {
                follows,
                // The next line begins where this one ends with the code.
                line_is_empty: *end == b'\n',
            },
            false => State::Rest,
        };
        let is_one = line.starts_with(b"HTTP/1.") && (200..600).contains(&status);
        Some((state, is_one.then_some(status)))
    }
}

/// Where an answer begins, or may; at the end where none does.
fn begin_of(bytes: &[u8]) -> usize {
    let begins = |at: &usize| {
        let rest = &bytes[*at..];
        rest.starts_with(BEGIN) || BEGIN.starts_with(rest)
    };
    (0..bytes.len()).find(begins).unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of these reads, one by one, each cut in pieces of so many bytes.
    fn left(request: &[u8], reads: &[&str], size: usize) -> String {
        let (mut strays, mut left) = (Strays::default(), Vec::new());
        for read in reads {
            strays.request(request);
            for piece in read.as_bytes().chunks(size) {
                let mut piece = piece.to_vec();
                let kept = strays.take_out(&mut piece);
                left.extend_from_slice(&piece[..kept]);
            }
        }
        String::from_utf8(left).expect("text")
    }

    const NONE: &str = "HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n";
    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

    #[test]
    fn what_follows_an_answer_without_a_body_is_taken_out_however_it_comes() {
        for size in [1, 3, 7, 1000] {
            let reads = [&[NONE, "ok"].concat(), OK];
            let expected = [NONE, OK].concat();
            assert_eq!(left(b"POST / H", &reads, size), expected, "{size}");
            let late = [NONE, &["ok", OK].concat()];
            assert_eq!(left(b"POST / H", &late, size), expected, "{size}");
        }
    }

    #[test]
    fn strays_without_end_are_not_read_for_ever() {
        let mut strays = Strays::default();
        strays.request(b"POST / H");
        strays.take_out(&mut NONE.as_bytes().to_vec());
        let mut some = vec![b'x'; limits::READ_ANSWER];
        assert_eq!(
            (strays.take_out(&mut some), strays.is_flooded()),
            (0, false)
        );
        assert_eq!((strays.take_out(&mut some), strays.is_flooded()), (0, true));
        strays.request(b"POST / H");
        assert!(!strays.is_flooded());
    }

    #[test]
    fn answers_with_a_body_are_left_alone() {
        let tricky =
            "HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\nHTTP/1.1 204 No Content\r\n\r\nand so on";
        for size in [1, 5, 1000] {
            assert_eq!(
                left(b"POST / H", &[tricky, OK], size),
                [tricky, OK].concat()
            );
            assert_eq!(
                left(b"\x16\x03\x01", &["\x16\x03ok", "ok"], size),
                "\x16\x03okok"
            );
        }
    }

    #[test]
    fn the_status_is_read_however_it_comes_and_whatever_follows() {
        for (answer, status) in [
            ("HTTP/1.1 200 OK\r\nA : 1\r\n", Some(200)),
            ("HTTP/1.1  503 Busy\r\n", Some(503)),
            ("HTTP/1.0 204\n", Some(204)),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 No\r\n",
                Some(404),
            ),
            ("HTTP/1.1 103 Hints\r\nA: 1\r\n", None),
            ("HTTP/1.1 2x0 OK\r\n", None),
            ("HTTP/1.1 999 ?\r\n", None),
            ("HTTP/1.1 2000 OK\r\n", None),
            ("HTTP/2.0 200 OK\r\n", None),
            ("SSH-2.0-x", None),
        ] {
            for size in [1, 4, 1000] {
                let mut strays = Strays::default();
                strays.request(b"POST / H");
                for piece in answer.as_bytes().chunks(size) {
                    strays.take_out(&mut piece.to_vec());
                }
                assert_eq!(strays.status(), status, "{answer}");
                strays.request(b"POST / H");
                assert_eq!(strays.status(), None);
            }
        }
    }

    #[test]
    fn an_answer_to_head_has_no_body_and_one_that_goes_on_is_followed_by_another() {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";
        let wait = "HTTP/1.1 100 Continue\r\n\r\n";
        for size in [1, 4, 1000] {
            assert_eq!(left(b"HEAD / H", &[OK, NONE], size), [head, NONE].concat());
            let reads = [&[wait, OK].concat(), OK];
            assert_eq!(left(b"PUT / HT", &reads, size), [wait, OK, OK].concat());
        }
    }
}
