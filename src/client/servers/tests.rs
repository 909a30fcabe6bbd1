//! The calls with fake servers that answer, refuse, hang and break off.

use crate::chain::filter::Filter;
use tokio::{net::TcpListener, sync::mpsc};

use super::*;
use crate::client::SILENCE_MAX;
use crate::client::fake::{FakeServers, refusal};

const SENT: &str = r#"{"id":"01990000-0000-7000-8000-000000000001","sender":"a","recipient":"b","text":"c","timestamp":1,"accepted_at":"2026-11-22T12:31:14.123Z","origin":"01990000-0000-7000-8000-000000000002","seq":1,"durable_on":[0],"duplicate":false}"#;

fn servers(addrs: &[&Addr]) -> Servers {
    Servers::new(Client::new(None), addrs.iter().map(|addr| (*addr).clone()).collect())
}

fn message() -> SendRequest {
    SendRequest { sender: "a".into(), recipient: "b".into(), text: "c".into(), timestamp: None, id: None }
}

#[tokio::test]
async fn a_send_carries_one_id_to_every_server_until_one_accepts_it() {
    let mut site = FakeServers::default();
    let (sender, mut received) = mpsc::channel(10);
    let record = sender.clone();
    let full = site
        .server(move |line, body| {
            record.try_send((line, body)).expect("room");
            refusal(ErrorCode::StorageFull)
        })
        .await;
    let good = site
        .server(move |line, body| {
            sender.try_send((line, body)).expect("room");
            (202, SENT.into())
        })
        .await;
    let broken = site.raw(b"").await;
    let servers = servers(&[&site.absent(), &broken, &full, &good]);
    let sent = servers.send(message(), Some("all")).await.expect("sent");
    assert_eq!((sent.below_acks, sent.answer.durable_on), (true, vec![0]));
    let (first, second) = (received.recv().await.expect("full"), received.recv().await.expect("good"));
    assert_eq!(first, second);
    assert_eq!(first.0, "POST /messages?acks=all");
    assert!(SendRequest::parse(first.1.as_bytes()).expect("a message").id.is_some());

    let mut tasks = tokio::task::JoinSet::new(); // commands may send from their own tasks
    tasks.spawn(async move { servers.send(message(), None).await });
    tasks.join_next().await.expect("one task").expect("no panic").expect("sent");
    assert_eq!(received.recv().await.expect("good").0, "POST /messages");
    assert!(received.try_recv().is_err(), "the server that answered is asked first from then on");
}

#[tokio::test]
async fn a_final_refusal_is_the_answer() {
    let mut site = FakeServers::default();
    let strict = site.server(|_, _| refusal(ErrorCode::IdConflict)).await;
    let good = site.server(|_, _| (200, SENT.into())).await;
    let error = servers(&[&strict, &good]).send(message(), None).await.expect_err("refused");
    assert_eq!(error.problem().map(|problem| problem.code), Some(ErrorCode::IdConflict));
    assert!(!error.no_node());
}

#[tokio::test]
async fn without_an_answer_the_error_names_each_server() {
    let mut site = FakeServers::default();
    let proxy = site.server(|_, _| refusal(ErrorCode::NoNodeAvailable)).await;
    let absent = site.absent();
    let error = servers(&[&proxy, &absent]).network().await.expect_err("no answer");
    assert!(error.no_node());
    let text = error.to_string();
    assert!(
        text.contains("on purpose (no_node_available)")
            && text.contains(&format!("{absent}: connection refused")),
        "{text}"
    );
}

#[tokio::test]
async fn a_refusal_of_a_node_is_preferred_to_missing_answers() {
    let mut site = FakeServers::default();
    let full = site.server(|_, _| refusal(ErrorCode::StorageFull)).await;
    let error =
        servers(&[&site.absent(), &full, &site.absent()]).send(message(), None).await.expect_err("full");
    assert_eq!(error.problem().map(|problem| problem.code), Some(ErrorCode::StorageFull));
    assert!(!error.no_node());
}

#[tokio::test]
async fn a_refusal_hides_no_attempt_that_may_have_stored_the_message() {
    for code in [ErrorCode::StorageFull, ErrorCode::Overloaded, ErrorCode::Starting] {
        let mut site = FakeServers::default();
        let (lost, refusing) = (site.raw(b"").await, site.server(move |_, _| refusal(code)).await);
        let error = servers(&[&lost, &refusing]).send(message(), None).await.expect_err("refused");
        assert!(!error.surely_not_stored(), "{error}");
        let error = servers(&[&site.absent(), &refusing]).send(message(), None).await.expect_err("refused");
        assert!(error.surely_not_stored(), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_starts_is_asked_again_until_it_has_started() {
    let mut site = FakeServers::default();
    let asked = AtomicUsize::new(0);
    let starting = site
        .server(move |_, _| match asked.fetch_add(1, Ordering::Relaxed) {
            0..3 => refusal(ErrorCode::Starting),
            _ => (200, SENT.into()),
        })
        .await;
    let began = Instant::now();
    servers(&[&site.absent(), &starting]).send(message(), None).await.expect("sent");
    assert!(began.elapsed() < STARTING_MAX);
}

#[tokio::test]
async fn a_server_that_goes_on_to_start_is_asked_for_some_seconds() {
    let mut site = FakeServers::default();
    let starting = site.server(|_, _| refusal(ErrorCode::Starting)).await;
    let began = Instant::now();
    let error = servers(&[&starting, &site.absent()]).network().await.expect_err("refused");
    assert!(error.is_starting(), "{error}");
    assert!((STARTING_MAX..2 * STARTING_MAX).contains(&began.elapsed()), "{:?}", began.elapsed());
    let full = site.server(|_, _| refusal(ErrorCode::StorageFull)).await;
    let began = Instant::now();
    let error = servers(&[&starting, &full]).network().await.expect_err("refused");
    assert_eq!(error.problem().map(|problem| problem.code), Some(ErrorCode::StorageFull));
    assert!(began.elapsed() < STARTING_MAX, "another refusal is the answer at once");
}

#[tokio::test]
async fn an_answer_of_another_program_is_ignored() {
    let mut site = FakeServers::default();
    let web = site.server(|_, _| (404, "<html>".into())).await;
    let redirect = site.server(|_, _| (302, String::new())).await;
    let text = site.server(|_, _| (200, "hello".into())).await;
    let error = servers(&[&web, &redirect, &text]).network().await.expect_err("no answer");
    assert!(!error.no_node(), "a program answered");
    let ClientError::NoAnswer { tried } = error else { panic!("{error}") };
    assert!(tried.iter().all(|e| matches!(e, ClientError::Malformed { .. })), "{tried:?}");
}

#[tokio::test]
async fn a_listing_sends_its_query() {
    let mut site = FakeServers::default();
    let good = site
        .server(|line, _| {
            assert_eq!(line, "GET /messages?user=a&limit=2");
            (200, format!("{SENT}\n"))
        })
        .await;
    let filter = Filter { user: Some("a".into()), ..Filter::default() };
    let query = ListQuery { filter, limit: Some(2), ..ListQuery::default() };
    let mut listing = servers(&[&good]).list(&query, None).await.expect("begins");
    assert_eq!(listing.next().await.expect("a message").expect("not the end").text, "c");
    assert_eq!(listing.next().await.expect("the end"), None);
}

#[tokio::test]
async fn a_listing_is_read_line_by_line_however_it_is_chunked() {
    let lines = format!("{SENT}\n{SENT}\n").into_bytes();
    for size in [1, 7, lines.len()] {
        let pieces: Vec<_> = lines.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let body = futures_util::stream::iter(pieces).boxed();
        let addr = "127.0.0.1:1".parse().expect("valid");
        let (position, buffer) = (None, LineBuffer::default());
        let mut listing =
            LineStream::<ListedMessage> { addr, position, missing: 0, body, buffer, values: PhantomData };
        assert_eq!(listing.next().await.expect("a message").expect("not the end").text, "c");
        assert_eq!(listing.next_line().await.expect("a line").expect("not the end"), SENT);
        assert_eq!(listing.next().await.expect("the end"), None);
    }
}

#[tokio::test]
async fn a_truncated_listing_is_an_error() {
    let mut site = FakeServers::default();
    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{}\n\r\n";
    let cut = site.raw(head).await;
    let mut listing = servers(&[&cut]).list(&ListQuery::default(), None).await.expect("begins");
    assert_eq!(listing.next_line().await.expect("a line").expect("not the end"), "{}");
    assert!(matches!(listing.next_line().await, Err(ClientError::Lost { .. })));
    let half = site.server(|_, _| (200, "{}\n{".into())).await;
    let mut listing = servers(&[&half]).list(&ListQuery::default(), None).await.expect("begins");
    listing.next_line().await.expect("a line");
    assert!(matches!(listing.next_line().await, Err(ClientError::Malformed { .. })));
}

#[tokio::test]
async fn an_exchange_is_bounded_in_time_and_size() {
    let mut site = FakeServers::default();
    let client = Client::new(None);
    let echo = site.server(|_, body| (200, body)).await;
    let within = Duration::from_secs(60);
    let answer = client.sync(&echo, Bytes::from("x"), within, SILENCE_MAX, false).await.expect("answers");
    let parts: Vec<_> = answer.map(|part| part.expect("arrives")).collect().await;
    assert_eq!(parts.concat(), b"x");
    let huge = site.server(|_, _| (200, "x".repeat(9 * 1024 * 1024))).await;
    let cut_off = site.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nx").await;
    for (server, is_too_long) in [(huge, true), (cut_off, false)] {
        let answer = client.sync(&server, Bytes::new(), within, SILENCE_MAX, false).await.expect("answers");
        let errors: Vec<_> = answer.filter_map(|part| std::future::ready(part.err())).take(1).collect().await;
        match (&errors[..], is_too_long) {
            ([ClientError::Malformed { .. }], true) | ([ClientError::Lost { .. }], false) => {}
            other => panic!("{other:?}"),
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let silent = listener.local_addr().expect("bound").into();
    let short = Duration::from_millis(20);
    assert!(matches!(
        client.sync(&silent, Bytes::new(), short, SILENCE_MAX, false).await,
        Err(ClientError::Timeout { .. })
    ));
}

#[tokio::test]
async fn readiness_is_read_from_a_refusal_too() {
    let mut site = FakeServers::default();
    let ready = site.server(|_, _| (503, r#"{"readable":true,"writable":false}"#.into())).await;
    let ready = Client::new(None).readyz(&ready, Duration::from_secs(60)).await.expect("answers");
    assert!(ready.readable && !ready.writable);
}
