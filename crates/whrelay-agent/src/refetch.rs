//! Asking the forwarder for an event once more that is damaged on this disk. It must not know why it is asked.

use std::sync::Arc;

use bytes::Bytes;
use reqwest::StatusCode;
use whrelay_core::id::EventId;
use whrelay_core::limits;
use whrelay_delivery::{Fetch, Fetched, client_config};
use whrelay_proto::codec;
use whrelay_proto::frame::Frame;

use crate::Config;
use crate::provision::{client, read};

/// Asks the forwarder of an agent.
pub(crate) fn from_forwarder(config: &Config) -> Fetch {
    let config = Arc::new(config.clone());
    Arc::new(move |id| {
        let config = Arc::clone(&config);
        Box::pin(async move { fetch(&config, id).await })
    })
}

/// Asks nobody yet: an agent that does not run will.
pub(crate) fn later() -> Fetch {
    Arc::new(|_| Box::pin(std::future::ready(Fetched::Later)))
}

async fn fetch(config: &Config, id: EventId) -> Fetched {
    match ask(config, id).await {
        Ok(fetched) => fetched,
        Err(why) => {
            tracing::warn!(%id, why, "could not fetch a damaged event; trying again later");
            Fetched::Later
        }
    }
}

async fn ask(config: &Config, id: EventId) -> Result<Fetched, String> {
    let Config {
        forwarder,
        proxies,
        trust,
        access,
        bucket,
        ..
    } = config;
    let tls = client_config(trust).map_err(|e| e.to_string())?;
    let client = client(forwarder, proxies, tls).map_err(|e| e.to_string())?;
    let root = forwarder.as_str().trim_end_matches('/');
    let request = client
        .get(format!("{root}/v1/buckets/{bucket}/events/{id}"))
        .bearer_auth(access.token().expose())
        .timeout(limits::FETCH_TIMEOUT);
    let failed = |e: reqwest::Error| e.without_url().to_string();
    let answer = request.send().await.map_err(failed)?;
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Ok(Fetched::Gone),
        other => return Err(format!("it answered {other}")),
    }
    let said = read(answer, limits::MAX_FRAME).await.map_err(failed)?;
    let frame = codec::decode(Bytes::from(said)).map_err(|e| e.to_string())?;
    let Frame::Events(mut batch) = frame else {
        return Err("it answered with no event".to_owned());
    };
    let event = batch.events.pop().ok_or("it answered with no event")?;
    Ok(Fetched::Event(Box::new(event.into_event(bucket.clone()))))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test panics where it has to fail")]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::{Instant, sleep};
    use whrelay_core::event::{Event, Request};
    use whrelay_core::time::Timestamp;
    use whrelay_core::token::Token;
    use whrelay_proto::frame::{Events, WireEvent};

    use super::*;
    use crate::{Access, Label, Proxies, Requests};

    fn event() -> Event {
        Event {
            id: EventId::from_bytes([7; 16]),
            bucket: "default".parse().unwrap(),
            received_at: Timestamp::from_micros(1),
            request: Request {
                method: "POST".to_owned(),
                tail: String::new(),
                query: None,
                headers: Vec::new(),
                body: Bytes::from(vec![b'x'; 100_000]),
            },
            removed_body: None,
        }
    }

    /// A forwarder that sends its answer in two parts, and waits so long between them.
    async fn slow_forwarder(pause: Duration) -> Config {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            let body = codec::encode(Frame::Events(Events {
                after: 0,
                upto: 1,
                events: vec![WireEvent::new(1, event())],
            }));
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let (first, rest) = body.split_at(body.len() / 2);
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(first).await.unwrap();
            sleep(pause).await;
            // The client may have closed the connection.
            let _ = stream.write_all(rest).await;
        });
        Config {
            forwarder: format!("http://{address}").parse().unwrap(),
            proxies: Proxies::none(),
            trust: whrelay_delivery::Trust::default(),
            access: Access::new(Token::mint(&[1; 53]), None),
            bucket: "default".parse().unwrap(),
            subscription: "laptop".parse().unwrap(),
            label: Label::default(),
            take_over: false,
            wants_backlog: None,
            setup: whrelay_core::destination::Setup::default(),
            backlog: whrelay_core::backlog::Backlog::default(),
            exit_on_disconnect: None,
            requests: Requests::default(),
            retention: whrelay_core::retention::Retention::ALL,
            dir: PathBuf::new(),
            runtime_dirs: Vec::new(),
        }
    }

    /// The time for management requests is too short for a large event over a slow line.
    #[tokio::test(start_paused = true)]
    async fn a_damaged_event_may_come_slowly() {
        let pause = limits::FETCH_TIMEOUT - Duration::from_secs(1);
        let config = slow_forwarder(pause).await;
        let began = Instant::now();
        let fetched = ask(&config, event().id).await.unwrap();
        assert!(began.elapsed() >= pause);
        assert!(matches!(fetched, Fetched::Event(found) if *found == event()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_forwarder_that_says_nothing_more_is_asked_again_later() {
        let config = slow_forwarder(limits::FETCH_TIMEOUT * 2).await;
        let began = Instant::now();
        let fetched = fetch(&config, event().id).await;
        assert!(matches!(fetched, Fetched::Later), "{fetched:?}");
        assert!(began.elapsed() < limits::FETCH_TIMEOUT * 2);
    }
}
