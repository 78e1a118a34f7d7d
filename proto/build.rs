//! Compiles the .proto files with protox, which needs no protoc, into messages, services and a descriptor set.

use std::{env, fs, path::PathBuf};

const FILES: [&str; 7] = [
    "millrace/api/v1/access.proto",
    "millrace/api/v1/credential.proto",
    "millrace/api/v1/discovery.proto",
    "millrace/api/v1/pipe.proto",
    "millrace/api/v1/rejected.proto",
    "millrace/api/v1/token.proto",
    "millrace/worker/v1/worker.proto",
];

const SECRETS: [&str; 6] = [
    "millrace.api.v1.AwsKeys",
    "millrace.api.v1.ClickHouseUser",
    "millrace.api.v1.CreateTokenResponse",
    "millrace.worker.v1.AwsKeys",
    "millrace.worker.v1.AwsRole",
    "millrace.worker.v1.ClickHouseDestination",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=millrace");
    println!("cargo:rerun-if-changed=third_party");
    let mut compiler = protox::Compiler::new([".", "third_party"])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files(FILES)?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // With the options of others' making (google.api.http), which the messages of prost do not keep.
    fs::write(out.join("millrace.binpb"), compiler.encode_file_descriptor_set())?;
    // Messages that hold a secret get a Debug that does not print it (src/lib.rs).
    tonic_prost_build::configure()
        .btree_map(".")
        .skip_debug(SECRETS)
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
