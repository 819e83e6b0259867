//! Which process listens on a port, for the error of somebody who wanted it.
//!
//! Best effort: other users' processes and other systems than Linux give None.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// State LISTEN in /proc/net/tcp.
const LISTEN: &str = "0A";

/// "process 1234 (`java`)".
pub(super) fn of_port(port: u16) -> Option<String> {
    let inodes: BTreeSet<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| listening_inodes(&table, port))
        .collect();
    let sockets: BTreeSet<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    if sockets.is_empty() {
        return None;
    }
    fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter(|entry| is_number(&entry.file_name().to_string_lossy()))
        .find(|entry| holds_any(&entry.path(), &sockets))
        .map(|entry| described(&entry.path()))
}

/// **Source**: proc(5); local address is the second column, state the fourth, inode the tenth.
fn listening_inodes(table: &str, port: u16) -> Vec<String> {
    let suffix = format!(":{port:04X}");
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let wanted = columns.get(1)?.ends_with(&suffix) && *columns.get(3)? == LISTEN;
            wanted.then(|| columns.get(9).map(|inode| (*inode).to_owned()))?
        })
        .collect()
}

fn holds_any(process: &Path, sockets: &BTreeSet<String>) -> bool {
    let Ok(files) = fs::read_dir(process.join("fd")) else {
        return false;
    };
    files
        .flatten()
        .filter_map(|file| fs::read_link(file.path()).ok())
        .any(|target| sockets.contains(target.to_string_lossy().as_ref()))
}

fn described(process: &Path) -> String {
    let id = process.file_name().unwrap_or_default().to_string_lossy();
    match fs::read_to_string(process.join("comm")) {
        Ok(name) => format!("process {id} (`{}`)", name.trim()),
        Err(_) => format!("process {id}"),
    }
}

fn is_number(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 111 1 0
   1: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000  1000        0 222 1 0
   2: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 333 1 0
";

    #[test]
    fn only_listening_sockets_of_the_port_count() {
        assert_eq!(listening_inodes(TABLE, 8080), ["111"]);
        assert_eq!(listening_inodes(TABLE, 80), ["333"]);
        assert!(listening_inodes(TABLE, 81).is_empty());
        assert!(listening_inodes("", 80).is_empty());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_holder_of_a_port_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let holder = of_port(port).expect("held by this test");
        assert!(holder.starts_with(&format!("process {} ", std::process::id())), "{holder}");
    }
}
