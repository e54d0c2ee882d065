//! Plays a case on a connection of its own, and says what was heard. It must not judge what arrived.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;
use whrelay_core::limits;

use super::case::{Answer, Arrival, CLOSED, Case};

/// How long an answer, or the end of the connection, may take: every limit of a request, and more.
const ENDS_WITHIN: Duration = limits::HEAD_TIMEOUT.saturating_mul(2);
/// A request after those of the case: where the next answer is not its own, something was hidden.
const LAST: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

/// An answer as it came.
#[derive(Debug)]
struct Heard {
    status: u16,
    body: String,
}

/// What came of a case.
#[derive(Debug, Default)]
pub(crate) struct Played {
    /// For each 2xx its event, where it was told, and what must arrive.
    pub(crate) accepted: Vec<(Option<String>, Option<Arrival>)>,
    pub(crate) findings: Vec<String>,
}

pub(crate) async fn play(address: SocketAddr, case: &Case) -> Played {
    let mut played = Played::default();
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (reading, mut writing) = stream.into_split();
    let mut reading = BufReader::new(reading);
    let answered = async {
        for answer in &case.answers {
            judge(&mut reading, answer, &mut played).await?;
        }
        Ok(())
    };
    let (answered, ()) = tokio::join!(answered, send(&mut writing, case));
    let ended = match answered {
        Ok(()) => end(&mut reading, &mut writing, &mut played).await,
        Err(why) => Err(why),
    };
    played.findings.extend(ended.err());
    played
}

async fn send(writing: &mut OwnedWriteHalf, case: &Case) {
    let size = if case.drips {
        1
    } else {
        case.bytes.len().max(1)
    };
    for piece in case.bytes.chunks(size) {
        // It may be answered, and closed, before all has been read.
        if writing.write_all(piece).await.is_err() {
            return;
        }
        tokio::task::yield_now().await;
    }
    if case.hangs_up {
        let _ = writing.shutdown().await;
    }
}

async fn judge(
    reading: &mut BufReader<OwnedReadHalf>,
    answer: &Answer,
    played: &mut Played,
) -> Result<(), String> {
    let bodiless = matches!(answer, Answer::Accepted(arrival) if arrival.method == "HEAD");
    let heard = next(reading, bodiless).await?;
    let status = heard.as_ref().map_or(CLOSED, |heard| heard.status);
    let accepted = (200..300).contains(&status);
    let arrival = match answer {
        Answer::Accepted(arrival) if accepted => Some(arrival.clone()),
        Answer::Accepted(_) => return Err(format!("{status} and not accepted")),
        Answer::Refused(statuses) if statuses.contains(&status) => return Ok(()),
        Answer::Refused(statuses) => {
            played
                .findings
                .push(format!("{status} and not one of {statuses:?}"));
            None
        }
    };
    if accepted {
        let id = heard.and_then(|heard| id_of(&heard.body));
        if id.is_none() && !bodiless {
            played.findings.push("accepted without an id".to_owned());
        }
        played.accepted.push((id, arrival));
    }
    Ok(())
}

/// Asks a last question, and takes its answer or the end of the connection, and nothing else.
async fn end(
    reading: &mut BufReader<OwnedReadHalf>,
    writing: &mut OwnedWriteHalf,
    played: &mut Played,
) -> Result<(), String> {
    let _ = writing.write_all(LAST).await;
    let mut more = Vec::new();
    while let Some(heard) = next(reading, false).await? {
        if let Some(id) = id_of(&heard.body) {
            played.accepted.push((Some(id), None));
        }
        more.push(heard);
    }
    let expected = more
        .iter()
        .all(|heard| heard.status == 200 && heard.body == "ok\n");
    match expected && more.len() <= 1 {
        true => Ok(()),
        false => Err(format!("answered once more: {more:?}")),
    }
}

/// The next answer, or nothing where the connection has ended. Interim ones are passed over.
async fn next(
    reading: &mut BufReader<OwnedReadHalf>,
    bodiless: bool,
) -> Result<Option<Heard>, String> {
    loop {
        let heard = timeout(ENDS_WITHIN, read(reading, bodiless)).await;
        let heard = heard.map_err(|_| "neither answered nor closed".to_owned())?;
        // A reset is an end as well.
        match heard.ok().flatten() {
            Some(heard) if (100..200).contains(&heard.status) => {}
            heard => return Ok(heard),
        }
    }
}

async fn read(
    reading: &mut BufReader<OwnedReadHalf>,
    bodiless: bool,
) -> std::io::Result<Option<Heard>> {
    let mut line = String::new();
    if reading.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let status = line
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let status = status.unwrap_or(u16::MAX);
    let mut length = 0;
    loop {
        line.clear();
        reading.read_line(&mut line).await?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; if bodiless { 0 } else { length }];
    reading.read_exact(&mut body).await?;
    let body = String::from_utf8_lossy(&body).into_owned();
    Ok(Some(Heard { status, body }))
}

fn id_of(body: &str) -> Option<String> {
    let json: serde_json::Value = serde_json::from_str(body).ok()?;
    Some(json["id"].as_str()?.to_owned())
}
