//! What a closed terminal does: SIGHUP ends a command as SIGTERM does, unless it was started to ignore it.

use tokio_util::sync::CancellationToken;
use whrelay_tests::eventually;
use whrelay_tests::process::Cloud;
use whrelay_tests::receiver::{Receiver, Reply};
use whrelay_tests::sender::send;

use crate::home;

/// It exited 129 at once, and the next `listen` made the same attempt again.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_terminal_lets_an_attempt_finish() {
    let (answer, home) = (CancellationToken::new(), home());
    let later = answer.clone();
    let slow = Receiver::scripted(move |_| Reply::Later(200, later.clone())).await;
    let (mut listen, url) = home.listen(&["--to", &slow.target()]).await;
    let id = send(&url, "x").await;
    eventually("an attempt", || (slow.count() == 1).then_some(())).await;
    listen.hang_up();
    let waits = || listen.stderr().contains("attempts under way").then_some(());
    eventually("it waits for the attempt", waits).await;
    // Systems and shells send it twice.
    listen.hang_up();
    answer.cancel();
    assert_eq!(listen.ended().await.code(), Some(0), "{}", listen.stderr());
    let attempt = listen.wait_state(&id, "sent").await;
    assert_eq!(attempt["attempt"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_terminal_ends_a_forwarder_and_a_test_in_good_order() {
    let (there, here) = (home(), home());
    let mut cloud = Cloud::start(&there).await;
    cloud.process.hang_up();
    assert_eq!(cloud.process.ended().await.code(), Some(0));
    let receiver = Receiver::start().await;
    let to = receiver.target();
    let script = "echo started >&2; exec sleep 1000";
    let args = ["test", "--to", &to, "--expect", "1", "--", "sh", "-c"];
    let mut test = here.start(&[&args[..], &[script]].concat());
    let started = || test.stderr().contains("started").then_some(());
    eventually("its command runs", started).await;
    test.hang_up();
    assert_eq!(test.ended().await.code(), Some(1), "{}", test.stderr());
    assert!(test.stderr().contains("interrupted"), "{}", test.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn under_nohup_a_closed_terminal_changes_nothing() {
    let (there, here, receiver) = (home(), home(), Receiver::start().await);
    let bind = whrelay_tests::port::quiet();
    let mut forwarder = there.start_nohup(&["forwarder", "--json", "--bind", &bind]);
    let ready = forwarder.wait("ready", |_| true).await;
    let (url, token) = (&ready["url"], &ready["token_file"]);
    let (url, token) = (url.as_str().unwrap(), token.as_str().unwrap());
    let to = receiver.target();
    let args = ["listen", "--json", "--to", &to, "--forwarder", url];
    let mut listen = here.start_nohup(&[&args[..], &["--token-file", token]].concat());
    let ready = listen.wait("ready", |_| true).await;
    for process in [&forwarder, &listen] {
        process.hang_up();
    }
    let id = send(ready["url"].as_str().unwrap(), "x").await;
    listen.wait_state(&id, "sent").await;
    assert_eq!(listen.terminate().await, Some(0), "{}", listen.stderr());
    assert_eq!(forwarder.terminate().await, Some(0));
}
