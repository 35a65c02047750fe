//! Compiles the protocols with protox, so that no protoc is needed. The API's messages are those of
//! `onced-client`; only the server stubs are made here.

use std::path::{Path, PathBuf};

use prost::Message;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    api(&out)?;
    compile(&["grpc/health/v1/health.proto"], &out.join("health.bin"))?;
    compile(&["onced/store/v1/record.proto", "onced/exec/v1/exec.proto"], &out.join("internal.bin"))
}

fn api(out: &Path) -> Result<()> {
    let files = protox::compile(
        ["onced/v1/idempotency_service.proto", "onced/v1/admin_service.proto", "onced/v1/error_reason.proto"],
        ["proto"],
    )?;
    std::fs::write(out.join("api.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_client(false)
        .extern_path(".onced.v1", "::onced_client::v1")
        .extern_path(".google.rpc.Status", "::tonic_types::Status")
        .compile_fds(files)?;
    Ok(())
}

fn compile(protos: &[&str], descriptors: &Path) -> Result<()> {
    let files = protox::compile(protos, ["proto"])?;
    std::fs::write(descriptors, files.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").btree_map(".").compile_fds(files)?;
    Ok(())
}
