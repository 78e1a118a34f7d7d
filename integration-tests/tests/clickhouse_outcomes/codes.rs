//! Each class of codes, answered by a server made for the test.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use anyhow::{Result, bail, ensure};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use millrace_common::reason;
use millrace_data_plane::sink::clickhouse::{Access, CODES, Class, InsertError, Sink};
use millrace_integration_tests::native::insert;
use tokio::net::TcpListener;

/// What is answered to an insert: a status and a code.
type Answer = Arc<Mutex<(u16, Option<u32>)>>;

/// A server that refuses every insert, and a sink into it.
async fn server() -> Result<(Sink, Answer)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let answer: Answer = Arc::new(Mutex::new((500, None)));
    let answers = Arc::clone(&answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answers = Arc::clone(&answers);
            let service = service_fn(move |request| respond(request, *answers.lock().expect("not poisoned")));
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    let access = Access {
        endpoint,
        username: "u".to_owned(),
        password: "p".to_owned().into(),
        database: "d".to_owned(),
    };
    Ok((Sink::new(&access)?, answer))
}

async fn respond(
    request: Request<Incoming>,
    (status, code): (u16, Option<u32>),
) -> Result<Response<Full<Bytes>>, Infallible> {
    let is_insert = request.uri().query().is_some_and(|query| query.contains("INSERT"));
    let read = request.into_body().collect().await;
    if !is_insert || read.is_err() {
        return Ok(Response::default());
    }
    let mut response = Response::new(Full::default());
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or_default();
    if let Some(code) = code {
        response
            .headers_mut()
            .insert("x-clickhouse-exception-code", hyper::header::HeaderValue::from(code));
        *response.body_mut() = Full::from(format!("Code: {code}. DB::Exception: for the test. (X)\n"));
    }
    Ok(response)
}

async fn refused(sink: &Sink) -> Result<InsertError> {
    match insert(sink, "t", &["a".to_owned()], vec![1], "token").await {
        Ok(inserted) => bail!("taken for an acknowledgement: {inserted:?}"),
        Err(error) => Ok(error),
    }
}

/// Every code of the class, as an HTTP error and inside a success.
async fn all_of(class: Class, permanent: bool, reasons: &[&str]) -> Result<()> {
    let (sink, answer) = server().await?;
    let codes = CODES.iter().filter(|(of, _)| *of == class);
    let mut tried = 0;
    for (code, name) in codes.flat_map(|(_, codes)| codes.iter()) {
        for status in [500, 200] {
            *answer.lock().expect("not poisoned") = (status, Some(*code));
            let error = refused(&sink).await?;
            ensure!(
                (error.class, error.code, error.status) == (class, Some(*code), Some(status)),
                "{name}: {error:?}"
            );
            ensure!(
                error.is_permanent() == permanent && error.is_known(),
                "{name}: {error:?}"
            );
            ensure!(reasons.contains(&error.reason()), "{name}: {}", error.reason());
            tried += 1;
        }
    }
    ensure!(tried > 10, "{tried} codes of {class:?}");
    Ok(())
}

#[tokio::test]
async fn retried_at_once() -> Result<()> {
    all_of(Class::Retry, false, &[reason::DESTINATION_UNREACHABLE]).await
}

#[tokio::test]
async fn retried_more_slowly() -> Result<()> {
    all_of(Class::Load, false, &[reason::DESTINATION_OVERLOADED]).await
}

#[tokio::test]
async fn the_table_does_not_fit() -> Result<()> {
    let reasons = [reason::DESTINATION_SCHEMA_CHANGED, reason::DESTINATION_COLUMN_NOT_FOUND];
    all_of(Class::Schema, true, &reasons).await
}

#[tokio::test]
async fn a_person_has_to_act() -> Result<()> {
    let reasons = [
        reason::DESTINATION_INSERT_FAILED,
        reason::DESTINATION_TABLE_NOT_FOUND,
        reason::DESTINATION_DATABASE_NOT_FOUND,
        reason::DESTINATION_AUTHENTICATION_FAILED,
        reason::DESTINATION_ACCESS_DENIED,
    ];
    all_of(Class::Pause, true, &reasons).await
}

#[tokio::test]
async fn rows_that_cannot_be_taken() -> Result<()> {
    all_of(Class::Poison, true, &[reason::DESTINATION_INSERT_FAILED]).await
}

#[tokio::test]
async fn a_defect_of_ours() -> Result<()> {
    all_of(Class::Bug, true, &[reason::INTERNAL]).await
}

#[tokio::test]
async fn codes_that_nobody_knows_are_retried_and_said_to_be_unknown() -> Result<()> {
    let (sink, answer) = server().await?;
    for code in [49, 530, 9_999, u32::MAX] {
        *answer.lock().expect("not poisoned") = (500, Some(code));
        let error = refused(&sink).await?;
        ensure!(
            (error.class, error.code) == (Class::Retry, Some(code)) && !error.is_known(),
            "{error:?}"
        );
        ensure!(error.reason() == reason::DESTINATION_INSERT_FAILED);
        ensure!(error.remedy().contains("does not know"), "{}", error.remedy());
    }
    Ok(())
}

#[tokio::test]
async fn an_insert_that_was_deduplicated_is_acknowledged() -> Result<()> {
    let (sink, answer) = server().await?;
    *answer.lock().expect("not poisoned") = (500, Some(389));
    insert(&sink, "t", &["a".to_owned()], vec![1], "token").await?;
    Ok(())
}

#[tokio::test]
async fn answers_without_a_code_are_a_proxys() -> Result<()> {
    let (sink, answer) = server().await?;
    let classes = BTreeMap::from([
        (204, Class::Retry),
        (301, Class::Pause),
        (401, Class::Pause),
        (403, Class::Pause),
        (404, Class::Pause),
        (408, Class::Retry),
        (413, Class::Pause),
        (429, Class::Load),
        (500, Class::Retry),
        (502, Class::Retry),
        (503, Class::Load),
        (504, Class::Retry),
    ]);
    for (status, class) in classes {
        *answer.lock().expect("not poisoned") = (status, None);
        let error = refused(&sink).await?;
        ensure!(
            (error.class, error.code, error.status) == (class, None, Some(status)),
            "{error:?}"
        );
    }
    Ok(())
}
