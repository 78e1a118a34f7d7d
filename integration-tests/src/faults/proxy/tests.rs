//! What the proxy does to connections, seen from both of their ends.

use super::*;
use crate::process::eventually;

const LIMIT: Duration = Duration::from_secs(20);

/// A server that sends back what it gets; the bytes that it got.
async fn echo() -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let got = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&got);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let counter = Arc::clone(&counter);
            tokio::spawn(async move {
                let mut buffer = vec![0; CHUNK];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    counter.fetch_add(count as u64, Ordering::Relaxed);
                    if stream.write_all(&buffer[..count]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, got)
}

async fn bed() -> (Proxy, Arc<AtomicU64>) {
    let (upstream, got) = echo().await;
    (Proxy::start(upstream).await.unwrap(), got)
}

async fn connect(proxy: &Proxy) -> TcpStream {
    TcpStream::connect(proxy.addr()).await.unwrap()
}

/// Sends and gets back.
async fn round(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(bytes).await?;
    let mut back = vec![0; bytes.len()];
    timeout(LIMIT, stream.read_exact(&mut back)).await.unwrap()?;
    Ok(back)
}

#[tokio::test]
async fn bytes_pass_unchanged_and_are_counted() {
    let (proxy, got) = bed().await;
    let bytes: Vec<u8> = (0..1_000_000_u32).map(|number| (number % 251) as u8).collect();
    let (mut reading, mut writing) = connect(&proxy).await.into_split();
    let sent = bytes.clone();
    let sending = tokio::spawn(async move {
        writing.write_all(&sent).await.unwrap();
        writing
    });
    let mut back = vec![0; bytes.len()];
    timeout(LIMIT, reading.read_exact(&mut back)).await.unwrap().unwrap();
    assert!(back == bytes, "the bytes came back changed");
    assert_eq!(got.load(Ordering::Relaxed), 1_000_000);
    let counts = proxy.counts();
    assert_eq!(
        (
            counts.connections,
            counts.open,
            counts.request_bytes,
            counts.response_bytes
        ),
        (1, 1, 1_000_000, 1_000_000)
    );
    drop((sending.await.unwrap(), reading));
    eventually("the connection is closed", LIMIT, || async { proxy.counts().open == 0 })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_delay_is_added_each_way_and_does_not_add_up() {
    let (proxy, _) = bed().await;
    proxy.set(Script::pass().delay(Duration::from_millis(100)));
    let mut stream = connect(&proxy).await;
    let began = Instant::now();
    for _ in 0..10 {
        stream.write_all(b"x").await.unwrap();
        sleep(Duration::from_millis(2)).await;
    }
    let mut back = [0; 10];
    stream.read_exact(&mut back).await.unwrap();
    let took = began.elapsed();
    assert!(
        took >= Duration::from_millis(200) && took < Duration::from_millis(1500),
        "ten bytes in a row came back after {took:?}"
    );
}

#[tokio::test]
async fn a_throttle_bounds_the_rate() {
    let (proxy, _) = bed().await;
    proxy.set(Script::pass().throttle(50_000));
    let mut stream = connect(&proxy).await;
    let began = Instant::now();
    round(&mut stream, &[7; 20_000]).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(380), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_frozen_connection_is_silent_until_it_thaws() {
    let (proxy, got) = bed().await;
    let mut stream = connect(&proxy).await;
    round(&mut stream, b"before").await.unwrap();
    proxy.set_all(Script::freeze());
    stream.write_all(b"during").await.unwrap();
    let mut back = [0; 6];
    let silent = timeout(Duration::from_millis(150), stream.read(&mut back)).await;
    assert!(silent.is_err(), "a frozen connection said {silent:?}");
    assert_eq!(got.load(Ordering::Relaxed), 6);
    // New ones are taken, and are as silent.
    let mut other = connect(&proxy).await;
    other.write_all(b"other").await.unwrap();
    assert!(
        timeout(Duration::from_millis(100), other.read(&mut back))
            .await
            .is_err()
    );
    proxy.heal();
    timeout(LIMIT, stream.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(&back, b"during");
    timeout(LIMIT, other.read_exact(&mut back[..5])).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_reset_reaches_both_sides_and_spares_later_connections() {
    let (proxy, _) = bed().await;
    let mut stream = connect(&proxy).await;
    round(&mut stream, b"hello").await.unwrap();
    proxy.reset_live();
    let error = timeout(LIMIT, stream.read(&mut [0; 1])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(proxy.counts().resets, 1);
    round(&mut connect(&proxy).await, b"hello").await.unwrap();

    proxy.set(Script::reset());
    let mut stream = connect(&proxy).await;
    let refused = round(&mut stream, b"hello").await;
    assert!(refused.is_err(), "{refused:?}");
}

#[tokio::test]
async fn a_cut_lets_just_so_many_bytes_through() {
    for direction in [Direction::Request, Direction::Response] {
        for end in [End::Fin, End::Reset, End::Freeze] {
            let (proxy, got) = bed().await;
            proxy.queue([Script::cut(direction, 10, end)]);
            let mut stream = connect(&proxy).await;
            stream.write_all(b"0123456789abcdef").await.unwrap();
            let mut back = Vec::new();
            let read = timeout(Duration::from_millis(500), stream.read_to_end(&mut back)).await;
            let what = format!("{direction:?} {end:?}: {read:?}, {} back", back.len());
            match end {
                End::Fin => assert!(matches!(read, Ok(Ok(_))), "{what}"),
                End::Reset => assert!(matches!(read, Ok(Err(_))), "{what}"),
                End::Freeze => assert!(read.is_err(), "{what}"),
            }
            // A reset may overtake what was echoed.
            assert!(back.len() <= 10, "{what}");
            let expected = match direction {
                Direction::Request => 10,
                Direction::Response => 16,
            };
            if end == End::Reset {
                // A server that had not read them yet never does.
                assert!(got.load(Ordering::Relaxed) <= expected, "{what}");
            } else {
                eventually(&what, LIMIT, || async { got.load(Ordering::Relaxed) == expected })
                    .await
                    .unwrap();
            }
            assert_eq!(proxy.counts().cuts, 1, "{what}");
            if end == End::Freeze {
                proxy.heal();
                let mut rest = vec![0; 16 - back.len()];
                timeout(LIMIT, stream.read_exact(&mut rest)).await.unwrap().unwrap();
                assert_eq!([back, rest].concat(), b"0123456789abcdef");
            }
            // Only one was scripted.
            round(&mut connect(&proxy).await, b"0123456789abcdef").await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_refusing_proxy_refuses_and_comes_back_on_its_port() {
    let (proxy, _) = bed().await;
    let mut stream = connect(&proxy).await;
    round(&mut stream, b"hello").await.unwrap();
    proxy.set(Script::refuse());
    let refused = || async {
        match TcpStream::connect(proxy.addr()).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            other => Err(format!("{other:?}")),
        }
    };
    eventually("connecting is refused", LIMIT, refused).await.unwrap();
    round(&mut stream, b"what is there stays").await.unwrap();
    proxy.set(Script::pass());
    let mut again = eventually("the port is back", LIMIT, || TcpStream::connect(proxy.addr()))
        .await
        .unwrap();
    round(&mut again, b"hello").await.unwrap();
}

#[tokio::test]
async fn a_dead_upstream_resets_its_clients() {
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
    let proxy = Proxy::start(nobody).await.unwrap();
    let mut stream = connect(&proxy).await;
    assert!(round(&mut stream, b"hello").await.is_err());
    proxy.set_upstream(echo().await.0);
    round(&mut connect(&proxy).await, b"hello").await.unwrap();
}

/// A server of HTTP/1.1 that notes what it gets.
async fn http() -> (SocketAddr, Arc<Mutex<Vec<Vec<u8>>>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (address, got) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let noted = Arc::clone(&got);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let noted = Arc::clone(&noted);
            tokio::spawn(async move {
                let (mut messages, mut buffer) = (Messages::default(), vec![0; CHUNK]);
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    for message in messages.push(&buffer[..count]) {
                        noted.lock().push(message.bytes);
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                        if stream.write_all(answer).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    (address, got)
}

#[tokio::test]
async fn a_request_is_sent_twice_byte_for_byte() {
    let (upstream, got) = http().await;
    let proxy = Proxy::start(upstream).await.unwrap();
    proxy.set(Script::duplicate("token=", Duration::ZERO));
    let body = vec![b'x'; 100_000];
    let head = "POST /?token=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n";
    let insert = [head.as_bytes(), &body].concat();
    let mut stream = connect(&proxy).await;
    let mut answer = [0; 40];
    for request in [&insert[..], b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"] {
        stream.write_all(request).await.unwrap();
        timeout(LIMIT, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    }
    eventually("the second answer", LIMIT, || async {
        proxy.counts().duplicate_answers == [200]
    })
    .await
    .unwrap();
    let got = got.lock();
    assert_eq!(got.iter().filter(|request| **request == insert).count(), 2);
    assert_eq!(
        (got.len(), proxy.counts().duplicated),
        (3, 1),
        "the GET is not repeated"
    );
}
