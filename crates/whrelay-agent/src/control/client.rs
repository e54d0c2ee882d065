//! The way to a running agent, for commands of the same user. It must not know what answers mean.

use std::path::Path;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures_util::StreamExt;
use reqwest::StatusCode;
use tokio::sync::mpsc;

use super::{Ask, Notice, PATH, Piece, WAITING_PIECES, local};
use crate::error::chain;
use crate::lines::Line;

/// How long a stale notice may hold a command up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an agent may take to begin its answer: one that is stopped takes connections, too.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// Nobody is there any more.
    #[error("the agent has just stopped")]
    Gone,
    /// It takes connections, and says nothing.
    #[error("the agent does not answer: process {0} may be stopped")]
    Silent(u32),
    /// It answers something else: it is another program, or of another version.
    #[error("the agent does not understand: process {pid} answers {status}")]
    Refused {
        /// Its process, as it said when it started.
        pid: u32,
        /// What it answers.
        status: StatusCode,
    },
}

/// The way to a running agent.
pub struct Client {
    notice: Notice,
    http: reqwest::Client,
}

impl Client {
    /// The agent of a data directory, if its notice is there. Whether it still runs, asking shows.
    pub fn find(dir: &Path) -> Option<Self> {
        let notice = std::fs::read(Notice::path(dir)).ok()?;
        let notice: Notice = serde_json::from_slice(&notice).ok()?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT);
        let http = local::through(http, dir, &notice.socket)?;
        Some(Self {
            notice,
            http: http.build().ok()?,
        })
    }

    /// Asks, and answers with the pieces as they come.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn ask(&self, ask: &Ask) -> Result<mpsc::Receiver<Piece>, Unanswered> {
        let pid = self.notice.pid;
        // The host is not looked up: the socket is what is connected to.
        let request = self.http.post(format!("http://localhost{PATH}")).json(ask);
        let response = tokio::time::timeout(ANSWERS_WITHIN, request.send()).await;
        let response = response.map_err(|_| Unanswered::Silent(pid))?;
        let response = response.map_err(|_| Unanswered::Gone)?;
        let status = response.status();
        if !status.is_success() {
            return Err(Unanswered::Refused { pid, status });
        }
        let (pieces, coming) = mpsc::channel(WAITING_PIECES);
        tokio::spawn(async move {
            if let Err(why) = read_pieces(response, &pieces).await {
                let line = Line::Failure {
                    not_found: false,
                    message: why,
                };
                // Where nobody listens any more, nobody needs to know.
                let _ = pieces.send(Piece::Line(Box::new(line))).await;
            }
        });
        Ok(coming)
    }
}

async fn read_pieces(response: reqwest::Response, out: &mpsc::Sender<Piece>) -> Result<(), String> {
    let (mut stream, mut buffer) = (response.bytes_stream(), BytesMut::new());
    let mut raw: Option<usize> = None;
    loop {
        while let Some(piece) = next_piece(&mut buffer, &mut raw)? {
            if out.send(piece).await.is_err() {
                return Ok(());
            }
        }
        match stream.next().await {
            Some(Ok(bytes)) => buffer.extend_from_slice(&bytes),
            Some(Err(error)) => return Err(format!("the agent has gone: {}", chain(&error))),
            None if buffer.is_empty() && raw.is_none() => return Ok(()),
            None => return Err("the agent's answer was cut short".into()),
        }
    }
}

fn next_piece(buffer: &mut BytesMut, raw: &mut Option<usize>) -> Result<Option<Piece>, String> {
    if let Some(length) = *raw {
        if buffer.len() < length {
            return Ok(None);
        }
        *raw = None;
        return Ok(Some(Piece::Bytes(buffer.split_to(length).freeze())));
    }
    let Some(end) = buffer.iter().position(|b| *b == b'\n') else {
        return Ok(None);
    };
    let text = buffer.split_to(end);
    buffer.advance(1);
    let line: Line = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    if let Line::Content(content) = &line {
        *raw = Some(usize::try_from(content.body_bytes).map_err(|e| e.to_string())?);
    }
    Ok(Some(Piece::Line(Box::new(line))))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::lines::ContentLine;

    #[test]
    fn pieces_are_found_however_the_bytes_are_cut() {
        let content = Line::Content(ContentLine {
            headers: Vec::new(),
            replaced: Vec::new(),
            body_bytes: 3,
        });
        let warning = Line::warning("x\ny");
        let mut whole = serde_json::to_vec(&warning).expect("json");
        whole.push(b'\n');
        whole.extend(serde_json::to_vec(&content).expect("json"));
        whole.extend(b"\n\n\n\n");
        for cut in 0..whole.len() {
            let (mut buffer, mut raw, mut pieces) = (BytesMut::new(), None, Vec::new());
            for part in [&whole[..cut], &whole[cut..]] {
                buffer.extend_from_slice(part);
                while let Some(piece) = next_piece(&mut buffer, &mut raw).expect("well formed") {
                    pieces.push(piece);
                }
            }
            let expected = [
                Piece::Line(Box::new(warning.clone())),
                Piece::Line(Box::new(content.clone())),
                Piece::Bytes(Bytes::from_static(b"\n\n\n")),
            ];
            assert_eq!(pieces, expected, "cut at {cut}");
        }
    }
}
