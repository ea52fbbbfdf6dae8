//! `/openapi.json` describes this server: every response that it describes occurs. `world/description.rs` checks the converse
//! for every response that the tests read: it is described.

use crate::world::{PATIENCE, Response, Server, description, text};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;

/// Servers that together give every response.
struct Servers {
    /// One user fits, and bodies have little time.
    usual: Server,
    fasterapi: Server,
    with_token: Server,
    full: Server,
}

impl Servers {
    fn start() -> Servers {
        let file = std::env::temp_dir().join(format!("ringtally-openapi-{}", std::process::id()));
        std::fs::write(&file, "token").unwrap();
        let servers = Servers {
            usual: Server::start(&["--max-users", "1", "--body-timeout", "1s"]),
            fasterapi: Server::start(&["--dialect", "fasterapi"]),
            with_token: Server::start(&["--admin-token-file", file.to_str().unwrap()]),
            full: Server::start(&["--max-connections", "1"]),
        };
        std::fs::remove_file(&file).unwrap();
        servers
    }

    /// Returns a request that gets this status and media type from an operation, and the address for it.
    fn provoke(
        &self,
        method: &str,
        path: &str,
        status: &str,
        media_type: &str,
    ) -> (SocketAddr, String) {
        let with = |fields: &str, body: &str| {
            format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{fields}\r\n{body}"
            )
        };
        let event = |user: &str| {
            let body = format!(r#"{{"userId":"{user}","value":1}}"#);
            with(&format!("Content-Length: {}\r\n", body.len()), &body)
        };
        let request = match (status, path) {
            ("200", "/event" | "/events") => event("u"),
            ("201", "/event") => return (self.fasterapi.address, event("u")),
            ("200" | "204", _) => with(&format!("Accept: {media_type}\r\n"), ""),
            ("400", _) => format!("{method} {path} HTTP/1.1\r\n\r\n"),
            ("401", _) => return (self.with_token.address, with("", "")),
            ("403", _) => with("Origin: http://example.org\r\n", ""),
            ("408", _) => with("Content-Length: 1\r\n", ""),
            ("413", _) => with("Content-Length: 100000000\r\n", ""),
            ("414", _) => format!("{method} {path}?{} HTTP/1.1\r\n", "x".repeat(8192)),
            ("415", "/event" | "/events") => with("Content-Encoding: gzip\r\n", ""),
            ("417", _) => with("Expect: nothing\r\n", ""),
            ("431", _) => with(&"A: b\r\n".repeat(101), ""),
            ("501", _) => with("Transfer-Encoding: gzip, chunked\r\n", ""),
            ("503", _) => return (self.full.address, with("", "")),
            ("505", _) => format!("{method} {path} HTTP/2.0\r\nHost: localhost\r\n\r\n"),
            ("507", "/event" | "/events") => event("v"),
            other => panic!("nothing provokes {other:?}: is it a response of this server?"),
        };
        (self.usual.address, request)
    }
}

/// Returns the only response to a request, with everything after its head as the body.
fn exchange(address: SocketAddr, request: &str) -> Response {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let whole = text(&bytes);
    let (head, body) = whole.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Response { status, head: head.into(), body: body.into() }
}

#[test]
fn every_described_response_occurs() {
    let servers = Servers::start();
    let mut held = servers.full.client();
    held.event("u", 1.0);
    let operations: Vec<_> = description::operations().collect();
    let mut occurred = 0;
    thread::scope(|scope| {
        for (path, method, responses) in &operations {
            for (status, response) in responses.as_object().unwrap() {
                let content = description::resolve(response)["content"].as_object();
                let media_types: Vec<&str> = match content {
                    Some(content) => content.keys().map(String::as_str).collect(),
                    None => vec!["*/*"],
                };
                for media_type in media_types {
                    let (address, request) = servers.provoke(method, path, status, media_type);
                    let run = move || {
                        let response = exchange(address, &request);
                        assert_eq!(&response.status.to_string(), status, "{method} {path}");
                        description::check(&request, &response);
                        let found = response.field("content-type");
                        assert!(content.is_none() || found == Some(media_type), "{response:?}");
                    };
                    // Each of these waits for a timeout.
                    match status.as_str() {
                        "408" => drop(scope.spawn(run)),
                        _ => run(),
                    }
                    occurred += 1;
                }
            }
        }
    });
    assert!(occurred > 100, "{occurred}");
}

#[test]
fn the_server_describes_itself() {
    let server = Server::start(&["--shards", "1"]);
    let mut client = server.client();
    assert_eq!(client.get("/openapi.json").body, description::TEXT);
    let document = description::document();
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    // Exactly the paths that the server names are described.
    let said = client.get("/none").body;
    let said: Value = serde_json::from_str(&said).unwrap();
    let sentence = said["error"].as_str().unwrap().strip_prefix("use ").unwrap();
    let mut named: Vec<&str> =
        sentence.split(", ").map(|path| path.trim_start_matches("or ")).collect();
    named.sort_unstable();
    assert_eq!(named, document["paths"].as_object().unwrap().keys().collect::<Vec<_>>());
    // Exactly the methods that a path has are described.
    for path in named {
        let asked = client.ask(&format!("OPTIONS {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        let mut allowed: Vec<&str> = asked.field("allow").unwrap().split(", ").collect();
        allowed.sort_unstable();
        let own = description::operations().filter(|(own, ..)| *own == path);
        let mut described: Vec<String> = own.map(|(_, method, _)| method).collect();
        described.sort_unstable();
        assert_eq!(allowed, described, "{path}");
    }
}
