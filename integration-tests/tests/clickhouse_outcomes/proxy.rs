//! A proxy before the engine that breaks the inserts it is told to, one after the other, and lets everything else pass.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, Result};
use millrace_integration_tests::clickhouse::ClickHouse;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// What happens to one insert.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The connection is reset when this share (of 100) of the block was passed on.
    ResetInBody(usize),
    /// The engine carries it out; the connection is reset before its answer.
    ResetBeforeAnswer,
    /// The engine carries it out; its answer ends after so many bytes.
    CutAnswer(usize),
    /// The engine carries it out; this is answered instead.
    AnswerInstead(&'static str),
    /// The engine never sees it; this is answered.
    AnswerWithout(&'static str),
    /// The engine carries it out; nothing is ever answered.
    Silence,
    /// The engine gets it twice, one after the other.
    Twice,
    /// The engine gets it after the next one; until then the client believes it lost.
    Late,
}

/// An insert as the proxy saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) token: String,
    pub(crate) body: Vec<u8>,
}

#[derive(Debug, Default)]
struct State {
    faults: VecDeque<Fault>,
    seen: Vec<Seen>,
    late: Option<Request>,
    late_answers: usize,
}

/// The proxy. It ends with the test's runtime.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    pub(crate) endpoint: String,
    upstream: String,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Clone)]
struct Request {
    head: String,
    body: Vec<u8>,
}

impl Proxy {
    pub(crate) async fn start(clickhouse: &ClickHouse, faults: impl IntoIterator<Item = Fault>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let upstream = clickhouse.http_url();
        let proxy = Self {
            endpoint: format!("http://{}", listener.local_addr()?),
            upstream: upstream.strip_prefix("http://").context("an http URL")?.to_owned(),
            state: Arc::default(),
        };
        proxy.lock().faults.extend(faults);
        let serving = proxy.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let proxy = serving.clone();
                // A connection that breaks is what is wanted here.
                tokio::spawn(async move { proxy.serve(stream).await });
            }
        });
        Ok(proxy)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic while it is held")
    }

    /// Inserts with rows that came, broken ones included.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.lock().seen.clone()
    }

    /// Faults that have not happened yet.
    pub(crate) fn left(&self) -> usize {
        self.lock().faults.len()
    }

    /// Inserts that reached the engine late and were answered by it.
    pub(crate) fn late_answers(&self) -> usize {
        self.lock().late_answers
    }

    /// One request; the connection is closed after it.
    async fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        let request = read_request(&mut client).await?;
        let token = parameter(&request.head, "insert_deduplication_token");
        let fault = match token {
            Some(token) if !request.body.is_empty() => {
                let mut state = self.lock();
                let body = request.body.clone();
                state.seen.push(Seen { token, body });
                state.faults.pop_front()
            }
            _ => None,
        };
        let whole = request.body.len();
        match fault {
            None => {
                let answer = self.forward(&request, whole).await?;
                client.write_all(&answer).await?;
                client.shutdown().await?;
                let late = self.lock().late.take();
                if let Some(late) = late {
                    self.forward(&late, late.body.len()).await?;
                    self.lock().late_answers += 1;
                }
                Ok(())
            }
            Some(Fault::ResetInBody(share)) => {
                self.forward(&request, whole * share / 100).await?;
                client.set_zero_linger()
            }
            Some(Fault::ResetBeforeAnswer) => {
                self.forward(&request, whole).await?;
                client.set_zero_linger()
            }
            Some(Fault::CutAnswer(bytes)) => {
                let answer = self.forward(&request, whole).await?;
                client.write_all(&answer[..bytes.min(answer.len())]).await?;
                client.shutdown().await
            }
            Some(Fault::AnswerInstead(answer)) => {
                self.forward(&request, whole).await?;
                client.write_all(answer.as_bytes()).await?;
                client.shutdown().await
            }
            Some(Fault::AnswerWithout(answer)) => {
                client.write_all(answer.as_bytes()).await?;
                client.shutdown().await
            }
            Some(Fault::Silence) => {
                self.forward(&request, whole).await?;
                // Until the client gives up.
                client.read(&mut [0]).await.map(drop)
            }
            Some(Fault::Twice) => {
                self.forward(&request, whole).await?;
                let answer = self.forward(&request, whole).await?;
                client.write_all(&answer).await?;
                client.shutdown().await
            }
            Some(Fault::Late) => {
                self.lock().late = Some(request);
                client.set_zero_linger()
            }
        }
    }

    /// Passes on the head and so many bytes of the body, and returns the engine's answer; nothing if the body was cut.
    async fn forward(&self, request: &Request, bytes: usize) -> io::Result<Vec<u8>> {
        let mut upstream = TcpStream::connect(&self.upstream).await?;
        upstream.write_all(request.head.as_bytes()).await?;
        upstream.write_all(&request.body[..bytes]).await?;
        let mut answer = Vec::new();
        if bytes < request.body.len() {
            upstream.set_zero_linger()?;
            return Ok(answer);
        }
        upstream.read_to_end(&mut answer).await?;
        Ok(answer)
    }
}

/// Reads a request with a Content-Length; its head asks to close the connection afterwards.
async fn read_request(client: &mut TcpStream) -> io::Result<Request> {
    const END: &[u8] = b"\r\n\r\n";
    let (mut bytes, mut chunk) = (Vec::new(), vec![0; 64 * 1024]);
    let head_end = loop {
        if let Some(at) = bytes.windows(END.len()).position(|window| window == END) {
            break at;
        }
        match client.read(&mut chunk).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => bytes.extend_from_slice(&chunk[..count]),
        }
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok())
        .unwrap_or_default();
    let mut body = bytes.split_off(head_end + END.len());
    while body.len() < length {
        match client.read(&mut chunk).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => body.extend_from_slice(&chunk[..count]),
        }
    }
    Ok(Request {
        head: format!("{head}\r\nConnection: close\r\n\r\n"),
        body,
    })
}

fn parameter(head: &str, name: &str) -> Option<String> {
    let target = head.split_whitespace().nth(1)?;
    let (_, query) = target.split_once('?')?;
    url::form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}
