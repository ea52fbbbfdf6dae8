//! The memory of each shard is on the NUMA node of its CPU.
//!
//! If the allowed CPUs of a machine are on one node, this checks nothing and prints that. `ci/kernels` runs this file's binary
//! on a machine with two nodes: `RINGTALLY_TEST_BINARY` names the program there.

use crate::world::{Server, run, text};
use ringtally::topology::{allowed_cpus, parse_cpu_list};
use std::collections::BTreeMap;
use std::fs::{read_dir, read_to_string};

/// The receive buffers of a shard: 2,048 of 4 KiB.
const BUFFER_BYTES: u64 = 2048 * 4096;
/// The share of a shard's memory that may be on another node: the allocations of the main thread, less than 1 MiB of more
/// than 10.
const ELSEWHERE_MAX: f64 = 0.1;

/// Returns an allowed CPU of each node, by the number of the node.
fn cpu_of_each_node() -> BTreeMap<usize, usize> {
    let allowed = allowed_cpus();
    let folder = "/sys/devices/system/node";
    let nodes = read_dir(folder).into_iter().flatten().filter_map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let number = name.strip_prefix("node")?.parse().ok()?;
        let list = read_to_string(format!("{folder}/{name}/cpulist")).unwrap();
        let cpus = parse_cpu_list(list.trim()).unwrap_or_default();
        Some((number, cpus.into_iter().find(|cpu| allowed.contains(cpu))?))
    });
    nodes.collect()
}

/// Returns the bytes of a process's anonymous memory on each node, in mappings of at least this size (numa(7)).
fn anonymous_bytes(pid: u32, mapping_bytes_min: u64) -> BTreeMap<usize, u64> {
    let mut of_nodes = BTreeMap::new();
    for line in read_to_string(format!("/proc/{pid}/numa_maps")).unwrap().lines() {
        if line.contains(" file=") || line.contains(" stack") {
            continue;
        }
        let page_bytes = line
            .split(' ')
            .find_map(|part| part.strip_prefix("kernelpagesize_kB="))
            .map_or(4096, |kib| 1024 * kib.parse::<u64>().unwrap());
        let on_node = |part: &str| {
            let (node, pages) = part.strip_prefix('N')?.split_once('=')?;
            Some((node.parse().ok()?, page_bytes * pages.parse::<u64>().ok()?))
        };
        let found: Vec<(usize, u64)> = line.split(' ').filter_map(on_node).collect();
        if found.iter().map(|(_, bytes)| bytes).sum::<u64>() >= mapping_bytes_min {
            for (node, bytes) in found {
                *of_nodes.entry(node).or_default() += bytes;
            }
        }
    }
    of_nodes
}

/// Starts a server on these CPUs, and sends events of this number of users, as single requests and in batches.
fn loaded_server(cpus: &[usize], users: &str) -> Server {
    let list = ringtally::topology::format_cpu_list(cpus);
    let server = Server::start(&["--cpus", &list]);
    for flags in [&["4000", "40"][..], &["150000", "10", "--batch", "1000"]] {
        let output =
            run(&[&["load"], flags, &["--users", users, "--quiet", "--url", &server.url()]]
                .concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    }
    server
}

#[test]
fn the_memory_of_each_shard_is_on_the_node_of_its_cpu() {
    let cpus = cpu_of_each_node();
    if cpus.len() < 2 {
        println!("nothing was checked: the allowed CPUs are on one node");
        return;
    }
    // One shard has nearly all of the memory: buffers, connections, and the tables of 75,000 users.
    for (node, cpu) in &cpus {
        let server = loaded_server(&[*cpu], "75000");
        let bytes = anonymous_bytes(server.pid(), 0);
        let total: u64 = bytes.values().sum();
        let here = bytes.get(node).copied().unwrap_or_default();
        println!("a shard on node {node}: {here} of {total} bytes are there: {bytes:?}");
        assert!(here >= BUFFER_BYTES);
        assert!((total - here) as f64 <= ELSEWHERE_MAX * total as f64);
    }
    // With a shard on each node: if one thread had allocated the buffers of both, they would be on one node.
    let all: Vec<usize> = cpus.values().copied().collect();
    let server = loaded_server(&all, "100");
    let bytes = anonymous_bytes(server.pid(), BUFFER_BYTES);
    println!("a shard on each node: bytes in mappings as large as the buffers of one: {bytes:?}");
    let total: u64 = bytes.values().sum();
    for node in cpus.keys() {
        let here = bytes.get(node).copied().unwrap_or_default();
        let share = here as f64 * cpus.len() as f64 / total as f64;
        assert!(here >= BUFFER_BYTES && (share - 1.0).abs() <= ELSEWHERE_MAX, "node {node}");
    }
}
