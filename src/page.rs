//! The live page: one file from memory, under a policy that lets it run its own script and style and
//! talk to its own server, and nothing else.

use crate::http::Reply;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

const PAGE: &str = include_str!("page.html");

/// The page, and the policy that goes with it.
#[derive(Debug)]
pub(crate) struct Page {
    policy: String,
}

impl Page {
    pub(crate) fn new() -> Page {
        let policy = format!(
            "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; \
             img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            source(element("script")),
            source(element("style")),
        );
        Page { policy }
    }

    /// Answers with the page. Returns the status.
    pub(crate) fn send(&self, reply: Reply<'_>) -> u16 {
        let fields = [
            ("Content-Security-Policy", self.policy.as_str()),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-cache"),
        ];
        reply.send(200, Some("text/html; charset=utf-8"), &fields, PAGE.as_bytes())
    }
}

/// What is in the page's only element of that name.
fn element(name: &str) -> &'static str {
    let (start, end) = (format!("<{name}>"), format!("</{name}>"));
    let inner = PAGE.split_once(start.as_str()).and_then(|(_, rest)| rest.split_once(end.as_str()));
    inner.map_or("", |(inner, _)| inner)
}

/// A source of the policy that allows exactly this text (CSP Level 3, section 2.3.1).
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
    fn a_hash_is_as_the_standard_has_it() {
        // The example of CSP Level 3, section 8.4 (hash usage for script elements).
        let expected = "sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng=";
        assert_eq!(source("alert('Hello, world.');"), expected);
    }
}
