//! Who asks, when nobody says.

/// User, host and process id of this process, such as `deploy@web-3:4711`.
pub fn default_owner() -> String {
    printable(&format!("{}:{}", place(), std::process::id()))
}

/// User and host of this process, such as `deploy@web-3`: the owner of a claim that outlives the process, or
/// that another process of the same user begins again by its request id.
pub fn lasting_owner() -> String {
    printable(&place())
}

fn place() -> String {
    let user = std::env::var("USER").ok().filter(|user| !user.is_empty());
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    user.map_or(host.clone(), |user| format!("{user}@{host}"))
}

fn printable(owner: &str) -> String {
    owner.chars().filter(|c| !c.is_control()).take(64).collect()
}
