//! Compiles the API with protox, so that no protoc is needed. `proto` is a link to the root's.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(
        ["onced/v1/idempotency_service.proto", "onced/v1/admin_service.proto", "onced/v1/error_reason.proto"],
        ["proto"],
    )?;
    // Names, so that these messages can be values and have fingerprints as any others.
    let mut config = prost_build::Config::new();
    config.enable_type_names();
    // Sorted maps, so that an outcome has one encoding; shared bytes, so that a replay copies nothing.
    tonic_prost_build::configure()
        // The server is that of the tests.
        .server_mod_attribute(".", "#[cfg(test)]")
        .bytes(".")
        .btree_map(".")
        .extern_path(".google.rpc.Status", "::tonic_types::Status")
        .compile_fds_with_config(files, config)?;
    Ok(())
}
