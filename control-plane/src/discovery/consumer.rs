//! The consumer that Millrace registers for a pipe that reads by enhanced fan-out: one per pipe, under a name that only that
//! pipe has, so that registering is the same however often it is done, and by whom.
//!
//! Workers look the consumer up by its name and wait until it is active. What the store holds of it is that it may be there, so that one
//! whose pipe is gone is found (`orphans`).
//!
//! Invariant: nothing is registered that was not noted before, and nothing is deregistered that was not noted.

use std::time::Duration;

use aws_sdk_kinesis::{Client, error::ProvideErrorMetadata as _};
use millrace_common::{aws::Access, fail_point, ids::PipeUid, pipe::managed_consumer, reason};

use super::{Error, calling};
use crate::store::{self, Store};

/// Two calls with their retries.
const DEADLINE: Duration = Duration::from_secs(30);
const FIELD: &str = "pipe.source.kinesis.use_enhanced_fan_out";

/// What was not done.
#[derive(Debug)]
pub enum Failure {
    /// By AWS.
    Source(Error),
    /// By the database.
    Store(store::Error),
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        Failure::Store(error)
    }
}

/// Sees to it that a pipe has its consumer, if it still is to have one.
///
/// # Errors
/// Why it has none.
pub async fn ensure(store: &Store, access: &Access, stream_arn: &str, pipe: PipeUid) -> Result<(), Failure> {
    if !Box::pin(store.note_consumer(pipe)).await? {
        return Ok(());
    }
    fail_point!("control.consumer.noted");
    let name = managed_consumer(pipe);
    let registered = bounded(Box::pin(register(access, stream_arn, &name)));
    let is_new = registered.await.map_err(|error| {
        let message = format!(
            "reading by polling, because the pipe's consumer cannot be had: {}",
            error.message
        );
        Failure::Source(unavailable(message))
    })?;
    fail_point!("control.consumer.registered");
    // It took its time, and whoever deleted the pipe meanwhile did not find a consumer.
    if is_new && !Box::pin(store.note_consumer(pipe)).await? {
        remove(access, stream_arn, pipe).await.map_err(Failure::Source)?;
    }
    Ok(())
}

/// Sees to it that a pipe has no consumer. False if it had none.
///
/// # Errors
/// Why it may have one still.
pub async fn remove(access: &Access, stream_arn: &str, pipe: PipeUid) -> Result<bool, Error> {
    fail_point!("control.consumer.deregister");
    let name = managed_consumer(pipe);
    let removed = bounded(Box::pin(deregister(access, stream_arn, &name))).await;
    removed.map_err(|error| unavailable(format!("the consumer {name} cannot be deregistered: {}", error.message)))
}

/// True if there was none.
async fn register(access: &Access, stream_arn: &str, name: &str) -> Result<bool, Error> {
    calling(access, |client: Client| async move {
        let described = client
            .describe_stream_consumer()
            .stream_arn(stream_arn)
            .consumer_name(name)
            .send()
            .await;
        match described {
            Ok(_) => return Ok(false),
            Err(error) if error.code() == Some("ResourceNotFoundException") => {}
            Err(error) => return Err(Error::of_call("kinesis:DescribeStreamConsumer", &error)),
        }
        let registered = client
            .register_stream_consumer()
            .stream_arn(stream_arn)
            .consumer_name(name)
            .send()
            .await;
        match registered {
            Ok(_) => {
                tracing::info!(stream = stream_arn, consumer = name, "consumer registered");
                Ok(true)
            }
            // Somebody else has just registered it; or it is being deleted, and is found missing in the next round.
            Err(error) if error.code() == Some("ResourceInUseException") => Ok(false),
            Err(error) if error.code() == Some("LimitExceededException") => Err(unavailable(
                "the stream has as many consumers as it may: deregister one, or switch use_enhanced_fan_out off"
                    .to_owned(),
            )),
            Err(error) => Err(Error::of_call("kinesis:RegisterStreamConsumer", &error)),
        }
    })
    .await
}

/// False if there was none.
async fn deregister(access: &Access, stream_arn: &str, name: &str) -> Result<bool, Error> {
    calling(access, |client: Client| async move {
        let removed = client
            .deregister_stream_consumer()
            .stream_arn(stream_arn)
            .consumer_name(name)
            .send()
            .await;
        match removed {
            Ok(_) => {
                tracing::info!(stream = stream_arn, consumer = name, "consumer deregistered");
                Ok(true)
            }
            Err(error) if error.code() == Some("ResourceNotFoundException") => Ok(false),
            Err(error) => Err(Error::of_call("kinesis:DeregisterStreamConsumer", &error)),
        }
    })
    .await
}

async fn bounded(work: impl Future<Output = Result<bool, Error>>) -> Result<bool, Error> {
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(result) => result,
        Err(_) => Err(unavailable(format!(
            "Kinesis did not answer within {} s about the pipe's consumer",
            DEADLINE.as_secs()
        ))),
    }
}

fn unavailable(message: String) -> Error {
    Error {
        reason: reason::SOURCE_FAN_OUT_UNAVAILABLE,
        message,
        field: FIELD,
        permanent: false,
        said: String::new(),
    }
}
