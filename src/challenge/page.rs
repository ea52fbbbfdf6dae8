//! A comparison of servers as one HTML page.

use super::Compared;
use super::table::HEADS;
use crate::load::{escape, html};

impl Compared {
    /// Returns it as a page without external assets or scripts.
    pub(super) fn html(&self) -> String {
        let mut body = String::new();
        for row in &self.rows {
            html::put(&mut body, &format!("<h2>{}</h2>", escape(&row.title)));
            html::put_table(&mut body, &HEADS, row.servers.iter().map(|server| self.cells(server)));
            for server in &row.servers {
                if let Some(why) = &server.why {
                    let name = &self.servers[server.server].name;
                    html::put(&mut body, &format!("<p>{}: {}</p>", escape(name), escape(why)));
                }
            }
        }
        html::put(&mut body, "<h2>Remarks</h2>");
        for line in self.remarks() {
            html::put(&mut body, &format!("<p>{}</p>", escape(&line)));
        }
        html::put(&mut body, "<h2>Servers</h2>\n<table>");
        for server in &self.servers {
            html::put_row(
                &mut body,
                &server.name,
                &[server.command.clone(), server.words.join(" ")],
            );
        }
        html::put(&mut body, "</table>");
        html::put_environment(&mut body, &self.environment);
        let names: Vec<&str> = self.servers.iter().map(|server| server.name.as_str()).collect();
        html::page(&format!("{} compared", escape(&names.join(", "))), &body)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::compared;
    use crate::load::escape;

    #[test]
    fn the_page_has_everything_that_the_text_has() {
        let compared = compared();
        let page = compared.html();
        for row in &compared.rows {
            for server in &row.servers {
                for cell in compared.cells(server).iter().chain(&server.why) {
                    assert!(page.contains(&escape(cell)), "{cell}");
                }
            }
        }
        for line in compared.remarks() {
            assert!(page.contains(&escape(&line)), "{line}");
        }
        assert!(!page.contains("<script"));
    }
}
