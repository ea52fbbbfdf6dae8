//! The live page: one file, served from memory with a policy that lets it use its own script and
//! style, connect to its own server, and do nothing else.

use crate::http::{Reply, Status};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

const PAGE: &str = include_str!("page.html");

/// The page and the policy that is sent with it.
#[derive(Debug)]
pub(crate) struct Page {
    policy: String,
}

impl Page {
    /// The size of the page in bytes.
    pub(crate) const BYTES: usize = PAGE.len();

    pub(crate) fn new() -> Page {
        let policy = format!(
            "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; \
             img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            source(element("script")),
            source(element("style")),
        );
        Page { policy }
    }

    /// Sends the page. Returns the status.
    pub(crate) fn send(&self, reply: Reply<'_>) -> Status {
        let fields = [
            ("Content-Security-Policy", self.policy.as_str()),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-cache"),
        ];
        reply.send(Status::Ok, Some("text/html; charset=utf-8"), &fields, PAGE.as_bytes())
    }
}

/// Returns the content of the page's only element with this name.
fn element(name: &str) -> &'static str {
    let (start, end) = (format!("<{name}>"), format!("</{name}>"));
    let inner = PAGE.split_once(start.as_str()).and_then(|(_, rest)| rest.split_once(end.as_str()));
    let (inner, _) = inner.expect("the page has one script and one style");
    inner
}

/// Returns a source expression that allows exactly this text (CSP Level 3, section 2.3.1).
fn source(text: &str) -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_one_file_with_one_script_and_one_style() {
        for name in ["script", "style"] {
            assert_eq!(PAGE.matches(&format!("<{name}")).count(), 1, "{name}");
            assert!(!element(name).is_empty(), "{name} has no attributes and is not empty");
        }
        for outside in ["src=", "href=\"http", "url(", "@import", " style=", " onclick", "//cdn"] {
            assert!(!PAGE.contains(outside), "{outside}");
        }
    }

    #[test]
    fn a_hash_is_the_one_in_the_standard() {
        // The example in CSP Level 3, section 8.4 (hash usage for script elements).
        let expected = "sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng=";
        assert_eq!(source("alert('Hello, world.');"), expected);
    }
}
