//! A forwarder behind TLS: who cannot prove to be it gets nothing, not even a try in the clear.

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, IsCa};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use whrelay_tests::eventually;
use whrelay_tests::process::Cloud;
use whrelay_tests::receiver::Receiver;
use whrelay_tests::sender::{client, id_of, send};
use whrelay_tests::tls::Identity;

use crate::{home, text};

fn identity(host: &str, last_year: i32) -> Identity {
    Identity::new(host, last_year, IsCa::NoCa)
}

/// Takes the TLS off and passes on what is left; answers with its port.
async fn terminate(identity: &Identity, server: &str) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = server.trim_start_matches("http://").to_owned();
    tokio::spawn(identity.terminate(listener, server));
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarder_behind_tls_is_reached_only_where_its_certificate_is_right() {
    let (there, receiver) = (home(), Receiver::start().await);
    let cloud = Cloud::start(&there).await;
    for (name, last_year, trusted, right) in [
        ("localhost", 2099, true, true),
        ("localhost", 2099, false, false),
        ("localhost", 2021, true, false),
        ("elsewhere.test", 2099, true, false),
    ] {
        let identity = identity(name, last_year);
        let mut here = home();
        if trusted {
            let roots = here.path().join("roots.pem");
            std::fs::write(&roots, &identity.pem).unwrap();
            here.set("SSL_CERT_FILE", roots.to_str().unwrap());
        }
        let port = terminate(&identity, &cloud.url).await;
        let (to, url) = (receiver.target(), format!("https://localhost:{port}"));
        let flags = [
            "--to",
            &to,
            "--forwarder",
            &url,
            "--token-file",
            &cloud.token_file,
        ];
        if right {
            let (_listen, input) = here.listen(&flags).await;
            let id = send(&input, "over TLS").await;
            eventually("it arrives", || {
                receiver.events().contains(&id).then_some(())
            })
            .await;
        } else {
            let refused = here.run(&[&["listen"][..], &flags].concat());
            let said = text(&refused.stderr);
            assert_eq!(
                refused.status.code(),
                Some(5),
                "{name} until {last_year}: {said}"
            );
            assert!(said.contains("certificate"), "{said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_behind_tls_are_trusted_as_the_user_says_and_get_the_users_fields() {
    let receiver = Receiver::start().await;
    let identity = identity("localhost", 2099);
    let port = terminate(&identity, &receiver.target()).await;
    let to = format!("https://localhost:{port}/base");
    let here = home();
    let ca_file = here.path().join("ca.pem");
    std::fs::write(&ca_file, &identity.pem).unwrap();
    let ca_file = ca_file.to_str().unwrap();
    for (n, (trust, state)) in [
        (&[][..], "stalled"),
        (&["--insecure"], "sent"),
        (&["--ca-file", ca_file], "sent"),
    ]
    .into_iter()
    .enumerate()
    {
        let bucket = format!("bucket-{n}");
        let own = ["-H", "X-Own: 1", "--host-header", "shop.test"];
        let flags = [&["--to", &to, "--bucket", &bucket][..], trust, &own].concat();
        let (listen, url) = here.listen(&flags).await;
        let id = send(&url, "x").await;
        let attempt = listen.wait_state(&id, state).await;
        if state == "stalled" {
            let error = attempt["error"].as_str().unwrap();
            assert!(error.contains("certificate"), "{error}");
            continue;
        }
        let arrived = receiver.seen().pop().unwrap();
        assert_eq!((arrived.event(), arrived.path.as_str()), (id, "/base"));
        assert_eq!(
            (arrived.header("x-own"), arrived.all("host")),
            ("1".into(), vec!["shop.test".into()])
        );
    }
    assert_eq!(
        receiver.count(),
        2,
        "nothing was sent to whom nobody trusts"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_shows_a_root_is_trusted_where_it_is_that_very_one() {
    let (home, receiver) = (home(), Receiver::start().await);
    let root = || IsCa::Ca(BasicConstraints::Unconstrained);
    let other = Identity::new("localhost", 2099, root());
    for (n, (host, last_year, own, state)) in [
        ("localhost", 2099, true, "sent"),
        ("localhost", 2099, false, "stalled"),
        ("localhost", 2021, true, "stalled"),
        ("elsewhere.test", 2099, true, "stalled"),
    ]
    .into_iter()
    .enumerate()
    {
        let identity = Identity::new(host, last_year, root());
        let port = terminate(&identity, &receiver.target()).await;
        let known = if own { &identity } else { &other };
        let file = home.path().join(format!("{n}.pem"));
        std::fs::write(&file, &known.pem).unwrap();
        let (to, file) = (
            format!("https://localhost:{port}"),
            file.display().to_string(),
        );
        let bucket = format!("bucket-{n}");
        let args = ["--to", &to, "--bucket", &bucket, "--ca-file", &file];
        let (listen, url) = home.listen(&args).await;
        listen.wait_state(&send(&url, "x").await, state).await;
    }
    assert_eq!(receiver.count(), 1);
}

/// What a target that speaks nothing but HTTP/2 was asked.
async fn over_http_2(identity: &Identity) -> (u16, mpsc::UnboundedReceiver<Asked>) {
    let mut config = ServerConfig::clone(&identity.config);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, asked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let near = acceptor.accept(near).await.unwrap();
            let tell = tell.clone();
            let answer = service_fn(move |request: Request<Incoming>| {
                let tell = tell.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes();
                    tell.send((head, body)).unwrap();
                    Ok::<_, hyper::Error>(Response::new(String::new()))
                }
            });
            let serving = http2::Builder::new(TokioExecutor::new());
            tokio::spawn(serving.serve_connection(TokioIo::new(near), answer));
        }
    });
    (port, asked)
}

type Asked = (Parts, Bytes);

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_speaks_http_2_gets_it_and_every_byte() {
    let (home, identity) = (home(), identity("localhost", 2099));
    let roots = home.path().join("roots.pem");
    std::fs::write(&roots, &identity.pem).unwrap();
    let (port, mut asked) = over_http_2(&identity).await;
    let (to, roots) = (
        format!("https://localhost:{port}/base"),
        roots.display().to_string(),
    );
    let (mut listen, url) = home.listen(&["--to", &to, "--ca-file", &roots]).await;
    let body: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let post = client().post(format!("{url}/x?a=%2F&a=b"));
    let post = post.header("X-Twice", "one").header("X-Twice", "two");
    let answer = post.body(body.clone()).send().await.unwrap();
    let id = id_of(&answer.text().await.unwrap());
    let sent = listen.wait_state(&id, "sent").await;
    assert_eq!(sent["attempt"], 1);
    let (head, came) = asked.recv().await.unwrap();
    assert_eq!(
        (head.version, head.method.as_str()),
        (Version::HTTP_2, "POST")
    );
    assert_eq!(head.uri.path_and_query().unwrap(), "/base/x?a=%2F&a=b");
    let twice: Vec<_> = head.headers.get_all("x-twice").iter().collect();
    assert_eq!(twice, ["one", "two"]);
    assert_eq!(head.headers["x-whrelay-event-id"], id.as_str());
    assert!(came == body, "the body changed");
    assert_eq!(listen.terminate().await, Some(0));
}
