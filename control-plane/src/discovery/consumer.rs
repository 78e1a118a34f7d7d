//! The consumer that Millrace registers for a pipe that reads by enhanced fan-out: one per pipe, under a name that only that
//! pipe has, so that registering is the same however often it is done, and by whom.
//!
//! Workers look the consumer up by its name and wait until it is active; nothing of it is stored.

use std::time::Duration;

use aws_sdk_kinesis::{Client, error::ProvideErrorMetadata as _};
use millrace_common::{aws::Access, reason};

use super::Error;

/// Two calls with their retries.
const DEADLINE: Duration = Duration::from_secs(30);
const FIELD: &str = "pipe.source.kinesis.use_enhanced_fan_out";

/// Sees to it that a stream has a consumer of this name.
///
/// # Errors
/// Why it has none.
pub async fn ensure(access: &Access, stream_arn: &str, name: &str) -> Result<(), Error> {
    bounded(Box::pin(async {
        let client = Client::new(&millrace_common::aws::config(access).await);
        let described = client
            .describe_stream_consumer()
            .stream_arn(stream_arn)
            .consumer_name(name)
            .send()
            .await;
        match described {
            Ok(_) => return Ok(()),
            Err(error) if error.code() == Some("ResourceNotFoundException") => {}
            Err(error) => return Err(unavailable("kinesis:DescribeStreamConsumer", &error)),
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
                Ok(())
            }
            // Somebody else has just registered it; or it is being deleted, and is found missing in the next round.
            Err(error) if error.code() == Some("ResourceInUseException") => Ok(()),
            Err(error) => Err(unavailable("kinesis:RegisterStreamConsumer", &error)),
        }
    }))
    .await
}

/// Sees to it that a stream has no consumer of this name.
///
/// # Errors
/// Why it may have one still.
pub async fn remove(access: &Access, stream_arn: &str, name: &str) -> Result<(), Error> {
    bounded(Box::pin(async {
        let client = Client::new(&millrace_common::aws::config(access).await);
        let removed = client
            .deregister_stream_consumer()
            .stream_arn(stream_arn)
            .consumer_name(name)
            .send()
            .await;
        match removed {
            Ok(_) => {
                tracing::info!(stream = stream_arn, consumer = name, "consumer deregistered");
                Ok(())
            }
            Err(error) if error.code() == Some("ResourceNotFoundException") => Ok(()),
            Err(error) => Err(unavailable("kinesis:DeregisterStreamConsumer", &error)),
        }
    }))
    .await
}

async fn bounded(work: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(result) => result,
        Err(_) => Err(Error {
            reason: reason::SOURCE_FAN_OUT_UNAVAILABLE,
            message: format!(
                "Kinesis did not answer within {} s about the pipe's consumer",
                DEADLINE.as_secs()
            ),
            field: FIELD,
            permanent: false,
        }),
    }
}

fn unavailable<E>(
    action: &str,
    error: &aws_sdk_kinesis::error::SdkError<E, aws_sdk_kinesis::config::http::HttpResponse>,
) -> Error
where
    E: aws_sdk_kinesis::error::ProvideErrorMetadata + std::error::Error + 'static,
{
    let advice = match error.code() {
        Some("LimitExceededException") => {
            "the stream has as many consumers as it may: deregister one, or switch use_enhanced_fan_out off".to_owned()
        }
        _ => Error::of_call(action, error).message,
    };
    Error {
        reason: reason::SOURCE_FAN_OUT_UNAVAILABLE,
        message: format!("reading by polling, because the pipe's consumer cannot be had: {advice}"),
        field: FIELD,
        permanent: false,
    }
}
