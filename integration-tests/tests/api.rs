//! The API end to end: a control plane in this process, called over gRPC, with a real ClickHouse engine and the Kinesis
//! emulator at its other ends. No worker runs; moving records is what other tests are about.

mod api {
    mod auth;
    mod bad_configuration;
    mod bed;
    mod credentials;
    mod discovery;
    mod events;
    mod filters;
    mod hostile;
    mod inference;
    mod life;
    mod oidc;
    mod once;
    mod rejected;
    mod rest;
    mod revisions;
    mod tables;
    mod trouble;
    mod watching;
}
