//! Handshakes that must not open a tunnel: requests with one thing wrong. It must not know frames.

use whrelay_core::limits;
use whrelay_core::token::Token;
use whrelay_proto::SUBPROTOCOL;
use whrelay_tests::sender;

use super::socket::Gate;

/// A request, and the statuses that are a good answer to it.
type Case = (&'static str, String, &'static [u16]);

/// Tries them all, at once. Answers with how many there were, and what went wrong.
pub(crate) async fn attack(gate: &Gate) -> (u64, Vec<String>) {
    let tries = cases(gate)
        .into_iter()
        .map(|(name, request, fine)| async move {
            let status = sender::raw(gate.address, request.as_bytes()).await.status;
            let said = || format!("handshake, {name}: answered {status}, not one of {fine:?}");
            (!fine.contains(&status)).then(said)
        });
    let found = futures_util::future::join_all(tries).await;
    (found.len() as u64, found.into_iter().flatten().collect())
}

#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn cases(gate: &Gate) -> Vec<Case> {
    let good = gate.request();
    let bearer = format!("Authorization: Bearer {}\r\n", gate.token);
    let instead = |line: &str, by: &str| {
        assert!(good.contains(line), "{line}");
        good.replace(line, by)
    };
    let token = |by: &str| instead(&bearer, &format!("Authorization: {by}\r\n"));
    let typo = gate.token.replace("whr_adm_", "whr_adm_0");
    let stranger = Token::mint(&[1; 53]).expose();
    let protocol = format!("Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n");
    let more = |lines: &str| good.replace("\r\n\r\n", &format!("\r\n{lines}\r\n"));
    let fields = "X-Filler: 1\r\n".repeat(limits::MAX_HEADERS);
    let long = format!("X-Long: {}\r\n", "a".repeat(limits::MAX_HEAD));
    vec![
        ("no token", instead(&bearer, ""), &[401]),
        ("an empty token", token("Bearer "), &[401]),
        ("no scheme", token(&gate.token), &[401]),
        (
            "another scheme",
            token(&format!("Basic {}", gate.token)),
            &[401],
        ),
        (
            "a stranger's token",
            token(&format!("Bearer {stranger}")),
            &[401],
        ),
        (
            "a token with a typing error",
            token(&format!("Bearer {typo}")),
            &[401],
        ),
        (
            "half a token",
            token(&format!("Bearer {}", &gate.token[..30])),
            &[401],
        ),
        (
            "a token of another kind",
            token("Bearer ghp_0123456789"),
            &[401],
        ),
        (
            "a token of bytes",
            token("Bearer whr_adm_\u{e9}\u{1f600}"),
            &[401],
        ),
        (
            "a huge token",
            token(&format!("Bearer {}", "whr_adm_".repeat(7000))),
            &[401],
        ),
        (
            "a bad token before a good one",
            more("").replace("Authorization", "Authorization: Bearer x\r\nAuthorization"),
            &[401],
        ),
        ("a browser", more("Origin: https://evil.test\r\n"), &[403]),
        ("a browser's null", more("Origin: null\r\n"), &[403]),
        ("an empty Origin", more("Origin:\r\n"), &[403]),
        ("no subprotocol", instead(&protocol, ""), &[400]),
        ("another subprotocol", instead(SUBPROTOCOL, "mqtt"), &[400]),
        (
            "a later subprotocol",
            instead(SUBPROTOCOL, "whrelay.v2"),
            &[400],
        ),
        (
            "a subprotocol in capitals",
            instead(SUBPROTOCOL, "WHRELAY.V1"),
            &[400],
        ),
        (
            "another version of websocket",
            instead("Version: 13", "Version: 8"),
            &[400],
        ),
        (
            "no version of websocket",
            instead("Sec-WebSocket-Version: 13\r\n", ""),
            &[400],
        ),
        (
            "no key",
            instead("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""),
            &[400],
        ),
        (
            "no upgrade",
            instead("Upgrade: websocket\r\n", ""),
            &[400, 426],
        ),
        (
            "another upgrade",
            instead("Upgrade: websocket", "Upgrade: h2c"),
            &[400, 426],
        ),
        (
            "no Connection",
            instead("Connection: Upgrade\r\n", ""),
            &[400, 426],
        ),
        ("POST", instead("GET ", "POST "), &[405]),
        ("HTTP/1.0", instead("HTTP/1.1", "HTTP/1.0"), &[400, 426]),
        ("HTTP/3.0", instead("HTTP/1.1", "HTTP/3.0"), &[400, 0]),
        (
            "another path",
            instead("/v1/tunnel", "/v1/../v1/tunnel"),
            &[404],
        ),
        (
            "a deeper path",
            instead("/v1/tunnel", "/v1/tunnel/x"),
            &[404],
        ),
        ("a NUL in a value", more("X-Nul: a\0b\r\n"), &[400]),
        ("a space before a colon", more("X-Space : a\r\n"), &[400]),
        ("no HTTP", "\u{1}\u{2}\u{3}\r\n\r\n".to_owned(), &[400]),
        (
            "TLS",
            "\u{16}\u{3}\u{1}\0\u{5}\u{1}\0\0\u{1}\u{3}\u{3}\r\n\r\n".to_owned(),
            &[400],
        ),
        ("too many fields", more(&fields), &[431]),
        ("a head too large", more(&long), &[431]),
    ]
}
