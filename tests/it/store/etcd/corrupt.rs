//! A record that cannot be read.

use onced_client::v1;

use super::{client, long_claim, open};
use crate::store::fixture::{create, key};
use crate::support::caller::rpc_status;
use crate::support::etcd::EtcdProcess;
use crate::support::log::Log;
use crate::support::recorded::info;
use crate::support::server::TestServer;

#[tokio::test]
async fn a_record_that_cannot_be_read_is_named_by_its_hash_to_the_caller_and_in_the_log() {
    let config = EtcdProcess::shared().config();
    let store = open(&config).await;
    create(&store, &key("before"), &long_claim()).await;
    create(&store, &key("other"), &long_claim()).await;
    let damaged = key("damaged");
    client(&config).await.put(format!("{}/r/suite/damaged", config.prefix), "damage", None).await.unwrap();
    let log = Log::start();
    let server = TestServer::start(store).await;
    let namespace = || "suite".to_owned();

    let list = v1::ListRequest { namespace: namespace(), ..v1::ListRequest::default() };
    let list = server.admin().await.list(list).await.unwrap_err();
    let lookup = v1::LookupRequest { namespace: namespace(), key: "damaged".to_owned(), wait: None };
    let lookup = server.client().await.lookup(lookup).await.unwrap_err();
    for (rpc, status) in [("List", list), ("Lookup", lookup)] {
        let info = info(&rpc_status(&status));
        assert_eq!(
            (info.reason.as_str(), &info.metadata["key_hash"]),
            ("RECORD_CORRUPT", &damaged.short_hash().to_string())
        );
        let told = format!("rpc=\"{rpc}\" namespace=\"suite\" key=\"{}\"", damaged.short_hash());
        assert_eq!(log.lines_with(&["WARN", &told]).len(), 1, "{:?}", log.lines_with(&[]));
    }
}
