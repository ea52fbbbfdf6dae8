//! Text for standard output, and for terminals of any width.

use crate::failure::Failure;
use anstream::adapter::strip_str;
use rustix::termios::tcgetwinsize;
use std::io::{ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;

/// The indentation of a continued line if the columns before it take over half of the terminal.
const NARROW_INDENT: usize = 2;

/// Prints text on standard output, without colors if that is not a terminal. It is not a failure if the reader of a pipe has
/// read enough and closed it.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    // Strips colors if standard output is not a terminal or NO_COLOR is set.
    let mut stdout = anstream::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            let why = format!("cannot write to standard output: {error}: check where it leads");
            Err(Failure::Environment(why))
        }
        _ => Ok(()),
    }
}

/// Prints a summary on standard output, or on standard error if a report is on standard output.
pub(crate) fn tell(text: &str, is_beside_report: bool) -> Result<(), Failure> {
    match is_beside_report {
        false => print(&fit(text, std::io::stdout())),
        true => {
            // If standard error is closed, nobody reads the summary.
            let _ = write!(anstream::stderr(), "{}", fit(text, std::io::stderr()));
            Ok(())
        }
    }
}

/// Wraps the lines of `text` between words if `output` is a terminal that is too narrow for them. Output to a file or
/// to another program is not wrapped.
pub(crate) fn fit(text: &str, output: impl IsTerminal + AsFd) -> String {
    let columns = match output.is_terminal() {
        true => tcgetwinsize(output).map_or(0, |size| usize::from(size.ws_col)),
        false => 0,
    };
    match columns {
        // Not a terminal, or a terminal that does not report its width.
        0 => text.to_owned(),
        columns => fit_columns(text, columns),
    }
}

/// Breaks lines that are longer than `columns`. The text after the last gap of two or more spaces continues below its
/// beginning, so that columns of text stay columns. A longer word is not broken.
fn fit_columns(text: &str, columns: usize) -> String {
    let mut fitted = String::with_capacity(text.len());
    for line in text.lines() {
        let start = line.rfind("  ").filter(|_| width(line) > columns).map_or(0, |gap| gap + 2);
        let (before, words) = line.split_at(start);
        let mut at = width(before);
        let indent = if at > columns / 2 { NARROW_INDENT } else { at };
        fitted.push_str(before);
        let mut is_first = true;
        for word in words.split(' ') {
            let gap = usize::from(!is_first);
            if at + gap + width(word) > columns && at > indent {
                fitted.truncate(fitted.trim_end_matches(' ').len());
                fitted.push('\n');
                fitted.push_str(&" ".repeat(indent));
                at = indent;
            } else if !is_first {
                fitted.push(' ');
                at += 1;
            }
            fitted.push_str(word);
            at += width(word);
            is_first = false;
        }
        fitted.push('\n');
    }
    fitted
}

/// Returns the width of a text in columns, without colors.
fn width(text: &str) -> usize {
    strip_str(text).map(|part| part.chars().count()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_fits_stays_and_one_that_does_not_is_continued_in_its_column() {
        let text = "OK    load  1% of the CPUs is in use\n\nverdict   exact\n";
        assert_eq!(fit_columns(text, 37), text);
        assert_eq!(
            fit_columns(text, 30),
            "OK    load  1% of the CPUs is\n            in use\n\nverdict   exact\n"
        );
        let wide_column = "OK    a name that takes much room  a value\n";
        assert_eq!(fit_columns(wide_column, 34), "OK    a name that takes much room\n  a value\n");
    }

    #[test]
    fn no_word_is_lost_and_no_line_is_too_long_at_any_width() {
        let text = "\u{1b}[33mWARN \u{1b}[0m governor     powersave of two CPUs; fix: run\n\
                    machine   4 warnings\n          and µs in a line that goes on\nplain words go on too\n";
        let words = |text: &str| {
            strip_str(text).to_string().split_whitespace().map(str::to_owned).collect()
        };
        let expected: Vec<String> = words(text);
        for columns in 1..80 {
            let fitted = fit_columns(text, columns);
            let found: Vec<String> = words(&fitted);
            assert_eq!(found, expected, "{columns}: {fitted}");
            for line in fitted.lines().filter(|_| columns >= 30) {
                assert!(width(line) <= columns, "{columns}: {line}");
            }
        }
    }
}
