//! The wire protocol of Millrace, generated from the `.proto` files beside this crate.
//!
//! [`api::v1`] is for users, [`worker::v1`] is what the two planes say to each other. Comments of the `.proto` files are
//! the documentation of the generated items.

#![allow(missing_docs, clippy::all, unreachable_pub)]

use std::sync::LazyLock;

use prost_reflect::DescriptorPool;

/// For users: pipes and credentials.
pub mod api {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("millrace.api.v1");
    }
}

/// Between the planes: sessions and batches.
pub mod worker {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("millrace.worker.v1");
    }
}

pub mod comments;

/// The encoded `FileDescriptorSet` of everything here, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/millrace.binpb"));

/// Descriptors by name, for code that maps messages to JSON or YAML.
pub static DESCRIPTOR_POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("the embedded descriptor set is valid"));

/// A `Debug` that shows only the fields that are no secret.
macro_rules! redacted_debug {
    ($type:ty, $($shown:ident),*) => {
        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($type))$(.field(stringify!($shown), &self.$shown))*.finish_non_exhaustive()
            }
        }
    };
}

redacted_debug!(api::v1::AwsKeys, access_key_id);
redacted_debug!(api::v1::ClickHouseUser, username);
redacted_debug!(api::v1::CreateTokenResponse, token);
redacted_debug!(worker::v1::AwsKeys, access_key_id);
redacted_debug!(worker::v1::AwsRole, role_arn, session_name);
redacted_debug!(
    worker::v1::ClickHouseDestination,
    endpoint,
    username,
    database,
    table,
    error_table
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_never_shows_a_secret() {
        let keys = worker::v1::AwsKeys {
            access_key_id: "AKIDEXAMPLE".into(),
            secret_access_key: "canary-secret".into(),
            session_token: "canary-token".into(),
        };
        let credential = worker::v1::AwsCredential {
            kind: Some(worker::v1::aws_credential::Kind::Keys(keys)),
        };
        let shown = format!("{credential:?}");
        assert!(shown.contains("AKIDEXAMPLE") && !shown.contains("canary"), "{shown}");
    }

    #[test]
    fn descriptors_know_every_service() {
        for name in [
            "millrace.api.v1.AccessService",
            "millrace.api.v1.PipeService",
            "millrace.api.v1.CredentialService",
            "millrace.worker.v1.WorkerService",
        ] {
            assert!(DESCRIPTOR_POOL.get_service_by_name(name).is_some(), "{name}");
        }
    }
}
