//! The conditions of the statements that write, evaluated as PostgreSQL would evaluate them, so that the results of a
//! simulation hold for the text that is sent.

/// The values that a condition is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Values {
    /// The number of the row's last write.
    pub(super) sequence: i64,
    /// The number of this write: $2.
    pub(super) write: i64,
    /// True if it may have been made already: $3.
    pub(super) is_repeat: bool,
    /// True if the group is in the generation of the write: $4.
    pub(super) is_of_generation: bool,
}

/// The only condition on another table.
pub(super) const GENERATION: &str = "EXISTS (SELECT FROM ringtally.tally WHERE generation = $4)";

impl Values {
    /// Returns whether a condition holds. It must consist of terms that are known here.
    pub(super) fn hold(&self, condition: &str) -> bool {
        let text = condition.split_whitespace().collect::<Vec<_>>().join(" ");
        self.evaluate(&text.replace(GENERATION, "$4"))
    }

    fn evaluate(&self, text: &str) -> bool {
        let text = match text.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
            Some(inside) => inside,
            None => text,
        };
        assert!(!text.contains(['(', ')']), "unknown: {text}");
        // AND binds more tightly than OR.
        text.split(" OR ").any(|all| all.split(" AND ").all(|one| self.compare(one)))
    }

    fn compare(&self, text: &str) -> bool {
        match text.split_once(" = ") {
            Some((left, right)) => self.number(left) == self.number(right),
            None if text == "$3" => self.is_repeat,
            None if text == "$4" => self.is_of_generation,
            None => panic!("unknown: {text}"),
        }
    }

    fn number(&self, text: &str) -> i64 {
        let (name, less) = text.split_once(" - ").unwrap_or((text, "0"));
        let number = match name {
            "sequence" => self.sequence,
            "$2" => self.write,
            _ => panic!("unknown: {text}"),
        };
        number - less.parse::<i64>().unwrap()
    }
}

#[test]
fn conditions_mean_what_they_mean_to_postgresql() {
    use ringtally::store::postgres::{MAY_COMMIT, MAY_WRITE};
    for sequence in 0..10 {
        for (is_repeat, is_of_generation) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            let values = Values { sequence, write: 5, is_repeat, is_of_generation };
            let (is_made, is_next) = (sequence == 5 && is_repeat, sequence == 4);
            assert_eq!(values.hold(MAY_WRITE), is_made || is_next);
            assert_eq!(values.hold(MAY_COMMIT), is_made || is_next && is_of_generation);
        }
    }
}
