//! Senders that are wrong, slow or hostile: a clear answer each, and nothing stored by mistake.

use std::time::Instant;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use whrelay_agent::Proxies;
use whrelay_core::bucket::{Bucket, Seq};
use whrelay_core::event::Event;
use whrelay_core::limits;
use whrelay_delivery::Trust;
use whrelay_tests::agent::{Agent, Setup};
use whrelay_tests::receiver::Receiver;
use whrelay_tests::relay::Relay;
use whrelay_tests::sender::{client, path_of, raw, read_answer, send};
use whrelay_tests::{eventually, eventually_read};

struct Input {
    relay: Relay,
    url: String,
    path: String,
    bucket: Bucket,
}

impl Input {
    async fn new() -> Self {
        let relay = Relay::start().await;
        let url = relay.input("default").await;
        let bucket = relay.store.catalog.buckets().await.unwrap().remove(0);
        Self {
            path: path_of(&url),
            relay,
            url,
            bucket,
        }
    }

    async fn stored(&self) -> Vec<Event> {
        let batch = self
            .relay
            .store
            .journal
            .read_after(&self.bucket, Seq(0), 1000, usize::MAX)
            .await
            .unwrap();
        batch
            .events
            .into_iter()
            .map(|stored| stored.event)
            .collect()
    }

    async fn raw(&self, head: &str, body: &[u8]) -> u16 {
        let head = head.replace("PATH", &self.path);
        let bytes = [head.as_bytes(), body].concat();
        let answer = raw(self.relay.address, &bytes).await;
        assert!(!answer.text.contains("panicked"));
        answer.status
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_keys_and_paths_are_404_and_say_nothing_else() {
    let input = Input::new().await;
    for path in [
        "/in/default",
        "/in/default-0000",
        "/in/",
        "/in",
        "/",
        "/inx",
    ] {
        let url = format!(
            "{}{}",
            input.relay.url().as_str().trim_end_matches('/'),
            path
        );
        let response = client().post(url).body("x").send().await.unwrap();
        assert_eq!(response.status(), 404, "{path}");
        assert_eq!(
            response.headers()["content-type"],
            "application/problem+json"
        );
    }
    assert!(input.stored().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_is_413_with_and_without_its_length() {
    let input = Input::new().await;
    let head = format!(
        "POST PATH HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        10_000_000_000u64
    );
    assert_eq!(input.raw(&head, b"").await, 413, "told before it is read");
    let over = vec![1; limits::MAX_BODY + 1];
    let response = client()
        .post(&input.url)
        .body(over.clone())
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 413);
    let chunks = futures_util::stream::iter(
        over.chunks(64 * 1024)
            .map(|c| Ok::<_, std::io::Error>(c.to_vec()))
            .collect::<Vec<_>>(),
    );
    let body = reqwest::Body::wrap_stream(chunks);
    let response = client().post(&input.url).body(body).send().await.unwrap();
    assert_eq!(response.status(), 413);
    assert!(input.stored().await.is_empty());
    let exactly = vec![1; limits::MAX_BODY];
    assert_eq!(
        client()
            .post(&input.url)
            .body(exactly)
            .send()
            .await
            .unwrap()
            .status(),
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_sets_the_limit_of_bodies() {
    for (max_body, size, status) in [
        (limits::SMALLEST_MAX_BODY, limits::SMALLEST_MAX_BODY, 200),
        (
            limits::SMALLEST_MAX_BODY,
            limits::SMALLEST_MAX_BODY + 1,
            413,
        ),
        (limits::LARGEST_MAX_BODY, limits::LARGEST_MAX_BODY, 200),
        (limits::LARGEST_MAX_BODY, limits::LARGEST_MAX_BODY + 1, 413),
    ] {
        let relay = Relay::start_taking(max_body).await;
        let url = relay.input("default").await;
        let sending = client().post(&url).body(vec![7; size]).send();
        let answer = sending.await.unwrap();
        assert_eq!(answer.status(), status, "{size} of {max_body} bytes");
        if status == 413 {
            let said = answer.text().await.unwrap();
            assert!(
                said.contains(&format!("larger than {max_body} bytes")),
                "{said}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_or_too_large_headers_are_431_and_say_so() {
    let input = Input::new().await;
    let fields = |n| (0..n).map(|n| format!("X-{n}: 1\r\n")).collect::<String>();
    let with = |fields: &str| format!("POST {} HTTP/1.1\r\nHost: x\r\n{fields}\r\n", input.path);
    let long = |over: usize| {
        let room = limits::MAX_HEAD - with("X: \r\n").len();
        with(&format!("X: {}\r\n", "a".repeat(room + over)))
    };
    for head in [with(&fields(limits::MAX_HEADERS)), long(1)] {
        let answer = raw(input.relay.address, head.as_bytes()).await;
        assert_eq!(answer.status, 431);
        let problem = answer.text.contains("application/problem+json");
        assert!(
            problem && answer.text.contains("at most 100 and 65536"),
            "{}",
            answer.text
        );
    }
    assert!(input.stored().await.is_empty());
    for head in [with(&fields(limits::MAX_HEADERS - 1)), long(0)] {
        assert_eq!(raw(input.relay.address, head.as_bytes()).await.status, 200);
    }
    assert_eq!(input.stored().await.len(), 2);
    let wrong = raw(
        input.relay.address,
        b"DELETE /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    )
    .await;
    assert_eq!(wrong.status, 405);
    assert!(
        wrong.text.contains("application/problem+json"),
        "{}",
        wrong.text
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_lengths_are_never_two_readings() {
    let input = Input::new().await;
    let both =
        "POST PATH HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n";
    let status = input.raw(both, b"5\r\nhello\r\n0\r\n\r\n").await;
    let stored = input.stored().await;
    match status {
        400 => assert!(stored.is_empty()),
        200 => {
            assert_eq!(stored.len(), 1);
            assert_eq!(stored[0].request.body, "hello");
        }
        other => panic!("{other}"),
    }
    let before = input.stored().await.len();
    for head in [
        "POST PATH HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        "POST PATH HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\n",
        "POST PATH HTTP/1.1\r\nHost: x\r\nContent-Length: 0x3\r\n\r\n",
        "POST PATH HTTP/1.1\r\nHost: x\r\nContent-Length : 3\r\n\r\n",
        "POST PATH HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n",
        "POST PATH HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
        "POST PATH HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n",
        "POST PATH HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n\r\n",
        "POST PATH HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n",
        "POST PATH HTTP/1.1\r\nHost: x\r\nX Y: a\r\n\r\n",
        "POST PATH HTTP/9.9\r\nHost: x\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    ] {
        let status = input.raw(head, b"abcd").await;
        assert!((400..=505).contains(&status), "{head:?} answered {status}");
    }
    assert_eq!(input.stored().await.len(), before);
}

/// It was answered 2xx, and delivered still coded, without a word of the coding.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_in_a_transfer_coding_other_than_chunked_is_not_accepted() {
    let input = Input::new().await;
    for coding in [
        "gzip, chunked",
        "identity, chunked",
        "chunked, chunked",
        "gzip\r\nTransfer-Encoding: chunked",
    ] {
        let head = format!("POST PATH HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {coding}\r\n\r\n");
        assert_eq!(
            input.raw(&head, b"1\r\nx\r\n0\r\n\r\n").await,
            501,
            "{coding}"
        );
    }
    assert!(input.stored().await.is_empty());
    let head = "POST PATH HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n";
    assert_eq!(input.raw(head, b"1\r\nx\r\n0\r\n\r\n").await, 200);
}

/// It was answered 2xx, without an id, and could never be delivered.
/// RFC 9112 section 3.2: such a request is answered with 400.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_missing_doubled_or_senseless_is_400() {
    let input = Input::new().await;
    let request = |version: &str, hosts: &str| {
        format!("POST PATH {version}\r\n{hosts}Content-Length: 1\r\n\r\n")
    };
    for hosts in [
        "",
        "Host: a\r\nHost: a\r\n",
        "Host: a\r\nHost: b\r\n",
        "Host: a b\r\n",
        "Host: a/b\r\n",
        "Host: user@a\r\n",
        "Host: a:port\r\n",
    ] {
        assert_eq!(
            input.raw(&request("HTTP/1.1", hosts), b"x").await,
            400,
            "{hosts}"
        );
    }
    assert!(input.stored().await.is_empty());
    for (version, hosts) in [
        ("HTTP/1.1", "Host: a.test:80\r\n"),
        ("HTTP/1.1", "Host: [::1]\r\n"),
        ("HTTP/1.0", ""),
    ] {
        assert_eq!(
            input.raw(&request(version, hosts), b"x").await,
            200,
            "{hosts}"
        );
    }
}

/// What other servers take is taken, and arrives as it was written; on a kept connection, too.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_a_sender_wrote_raw_arrive_raw() {
    let input = Input::new().await;
    let receiver = Receiver::start().await;
    let _agent = Agent::start(Setup::new(&input.relay, receiver.target())).await;
    let mut stream = TcpStream::connect(input.relay.address).await.unwrap();
    let high: Vec<u8> = b"/".iter().copied().chain(0x80..=0xff).collect();
    let many = [b"/?", &b"\xe9".repeat(10_000)[..]].concat();
    let tails = [
        &b"/a\"b\"?q=\"<x>`"[..],
        b"/plain",
        b"/<>?{\"a\":[1]}",
        b"/%3C%22%~3C\"",
        b"/%~3C?`|^\\",
        b"/caf\xe9?q=\xff<%~\x80",
        "/caf\u{e9}?\u{1f600}\u{10ffe9}\u{10ffff}".as_bytes(),
        b"?\xf4\x8f\xbf",
        &high,
        &many,
    ];
    for tail in tails {
        let head = b" HTTP/1.1\r\nHost: a\r\nX-Raw: \"<>`\r\nContent-Length: 4\r\n\r\n\"<>`";
        let request = [b"POST ", input.path.as_bytes(), tail, head].concat();
        stream.write_all(&request).await.unwrap();
        let shown = tail.escape_ascii().to_string();
        assert_eq!(read_answer(&mut stream).await.status, 200, "{shown}");
        let at = if tail[0] == b'?' {
            &[b"/", tail].concat()
        } else {
            tail
        };
        eventually(&shown, || {
            receiver.seen().into_iter().find(|r| r.target == at)
        })
        .await;
    }
    for got in receiver.seen() {
        assert_eq!(
            (got.header("x-raw").as_str(), &got.body[..]),
            ("\"<>`", &b"\"<>`"[..])
        );
    }
    assert_eq!(receiver.count(), tails.len());
    // As text it is larger than any agent takes: a tunnel would end at it again and again.
    let path = input.path.as_bytes();
    let head = [
        b"POST ",
        path,
        &b"/\xe9".repeat(20_000),
        b" HTTP/1.1\r\nHost: a\r\n\r\n",
    ];
    assert_eq!(raw(input.relay.address, &head.concat()).await.status, 431);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_too_large_is_refused_before_it_is_asked_for() {
    let input = Input::new().await;
    let size = limits::MAX_BODY + 1;
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {size}\r\n\r\n",
        input.path
    );
    let answer = raw(input.relay.address, head.as_bytes()).await;
    assert_eq!(answer.status, 413);
    assert!(!answer.text.contains("100 Continue"), "{}", answer.text);
    let head = head.to_lowercase().replace(&size.to_string(), "1");
    assert!(head.contains("content-length: 1\r"));
    let answer = raw(
        input.relay.address,
        head.replace("post", "POST")
            .replace("http/1.1", "HTTP/1.1")
            .as_bytes(),
    )
    .await;
    assert!(answer.text.contains("100 Continue"), "{}", answer.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_is_kept_by_a_cache() {
    let input = Input::new().await;
    for url in [input.url.clone(), format!("{}x", input.url)] {
        let answer = client().post(url).body("x").send().await.unwrap();
        assert_eq!(answer.headers()["cache-control"], "no-store");
    }
}

/// A target that is the input URL itself would have each event go round for ever.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_was_delivered_from_here_is_refused() {
    let input = Input::new().await;
    let agent = Agent::start(Setup::new(&input.relay, input.url.clone())).await;
    let event = send(&input.url, "round and round").await;
    let end = agent.wait_state(&event, "dead").await;
    assert_eq!((end.status, end.attempt), (Some(421), 1));
    assert_eq!(input.stored().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_is_not_accepted() {
    let input = Input::new().await;
    let head = "CONNECT PATH HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n";
    assert_eq!(input.raw(head, b"x").await, 501);
    assert!(input.stored().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn header_bytes_that_are_no_utf8_are_kept() {
    let input = Input::new().await;
    let mut head = input.path.clone().into_bytes();
    head.splice(0..0, *b"POST ");
    head.extend_from_slice(
        b" HTTP/1.1\r\nHost: x\r\nX-Raw: caf\xe9\xff\r\nContent-Length: 1\r\n\r\nx",
    );
    assert_eq!(raw(input.relay.address, &head).await.status, 200);
    assert_eq!(
        input.stored().await[0].request.header("x-raw"),
        Some(&b"caf\xe9\xff"[..])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn dot_segments_are_refused_and_other_paths_kept_raw() {
    let input = Input::new().await;
    for tail in [
        "/..",
        "/a/../b",
        "/%2e%2e/",
        "/.%2E",
        "/a%2f..%2fb",
        "/..%5cb",
        "/..;/x",
    ] {
        let head = format!("POST PATH{tail} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(input.raw(&head, b"").await, 400, "{tail}");
    }
    assert!(input.stored().await.is_empty());
    for tail in ["//x", "/%00", "/a;b", "/%2F", "/...", "/a%20b?q=../.."] {
        let head = format!("POST PATH{tail} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(input.raw(&head, b"").await, 200, "{tail}");
        assert_eq!(
            input
                .stored()
                .await
                .last()
                .unwrap()
                .request
                .path_and_query(),
            tail
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_heads_and_bodies_are_cut_off() {
    let input = Input::new().await;
    let began = Instant::now();
    let mut head = TcpStream::connect(input.relay.address).await.unwrap();
    head.write_all(b"POST /in/x HTTP/1.1\r\nHost: x\r\n")
        .await
        .unwrap();
    let mut body = TcpStream::connect(input.relay.address).await.unwrap();
    let start = format!(
        "POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc",
        input.path
    );
    body.write_all(start.as_bytes()).await.unwrap();
    let (head, body) = tokio::join!(read_answer(&mut head), read_answer(&mut body));
    assert_eq!(body.status, 408, "{}", body.text);
    assert!(body.text.contains("connection: close"), "{}", body.text);
    assert!(matches!(head.status, 0 | 408), "{}", head.text);
    assert!(began.elapsed() < limits::HEAD_TIMEOUT * 2);
    assert!(input.stored().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_gives_up_leaves_nothing_behind() {
    let input = Input::new().await;
    let mut stream = TcpStream::connect(input.relay.address).await.unwrap();
    let start = format!(
        "POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc",
        input.path
    );
    stream.write_all(start.as_bytes()).await.unwrap();
    drop(stream);
    assert_eq!(
        client()
            .post(&input.url)
            .body("whole")
            .send()
            .await
            .unwrap()
            .status(),
        200
    );
    let stored = eventually_read("the whole one", async || {
        input.stored().await.into_iter().next()
    })
    .await;
    assert_eq!(
        (input.stored().await.len(), stored.request.body.as_ref()),
        (1, &b"whole"[..])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_closes_its_side_early_still_gets_its_answer() {
    let input = Input::new().await;
    for n in 1..=20 {
        let mut stream = TcpStream::connect(input.relay.address).await.unwrap();
        let request = format!(
            "POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx",
            input.path
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(read_answer(&mut stream).await.status, 200);
        assert_eq!(input.stored().await.len(), n);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipelined_burst_is_all_stored() {
    let input = Input::new().await;
    let one = format!(
        "POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx",
        input.path
    );
    raw(input.relay.address, one.repeat(20).as_bytes()).await;
    eventually_read("twenty", async || {
        (input.stored().await.len() == 20).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_told_to_anyone() {
    let input = Input::new().await;
    for path in ["healthz", "readyz"] {
        let url = format!("{}{path}", input.relay.url());
        assert_eq!(client().get(url).send().await.unwrap().status(), 200);
    }
}

/// `whrelay doctor` read 64 KiB of the list of buckets, and called a forwarder that has more of them none.
#[tokio::test(flavor = "multi_thread")]
async fn a_forwarder_with_very_many_buckets_lists_them_in_pages() {
    const BUCKETS: usize = 700;
    let relay = Relay::start().await;
    let name = |n: usize| format!("a-bucket-with-quite-a-long-name-{n:04}");
    let (client, token) = (client(), relay.token.expose());
    let put = |n| {
        let address = format!("{}v1/buckets/{}", relay.url(), name(n));
        let request = client.put(address).bearer_auth(&token);
        tokio::spawn(async move { request.send().await.unwrap().status() })
    };
    for some in (0..BUCKETS).collect::<Vec<_>>().chunks(50) {
        for made in some.iter().map(|n| put(*n)).collect::<Vec<_>>() {
            assert_eq!(made.await.unwrap(), 201);
        }
    }
    let list = |path: String| {
        let request = client.get(relay.url().join(&path).unwrap());
        let request = request.bearer_auth(&token);
        async move { request.send().await.unwrap() }
    };
    let (mut names, mut pages, mut bytes) = (Vec::new(), 0, 0);
    let mut next = Some("/v1/buckets?limit=200".to_owned());
    while let Some(page) = next {
        let answer = list(page).await;
        assert_eq!(answer.status(), 200);
        let link = answer.headers().get("link").cloned();
        next = link.map(|link| {
            let link = link.to_str().unwrap().strip_prefix('<').unwrap();
            link.strip_suffix(">; rel=\"next\"").unwrap().to_owned()
        });
        let body = answer.bytes().await.unwrap();
        let views: Vec<serde_json::Value> = serde_json::from_slice(&body).unwrap();
        (pages, bytes) = (pages + 1, bytes + body.len());
        names.extend(
            views
                .iter()
                .map(|view| view["name"].as_str().unwrap().to_owned()),
        );
    }
    assert_eq!((pages, names), (4, (0..BUCKETS).map(name).collect()));
    assert!(bytes > limits::MAX_API_ANSWER, "{bytes}");

    let first = list("/v1/buckets".into()).await;
    let first: Vec<serde_json::Value> = first.json().await.unwrap();
    assert_eq!(first.len(), limits::BUCKETS_LISTED);
    let last = list(format!("/v1/buckets?after={}", name(BUCKETS - 2))).await;
    assert_eq!(last.headers().get("link"), None);
    for wrong in ["limit=0", "limit=1001", "limit=x", "limit=", "after=../x"] {
        let answer = list(format!("/v1/buckets?{wrong}")).await;
        let kind = answer.headers()["content-type"].clone();
        assert_eq!(
            (answer.status().as_u16(), kind),
            (400, "application/problem+json".parse().unwrap())
        );
        let problem: serde_json::Value = answer.json().await.unwrap();
        assert!(problem["hint"].is_string(), "{wrong}: {problem}");
    }
    let (none, trust) = (Proxies::none(), Trust::default());
    let looked = whrelay_agent::look_at(&relay.url(), &none, &trust, Some(&relay.token)).await;
    assert_eq!(looked.unwrap().token, Ok(()));
}
