//! A comparison of servers in the form that exporters need: the findings for each server in each row.

use super::Compared;
use super::comparison::{InRow, RowFound, Spread};
use crate::load::{Case, Finding, Findings, cell};

/// The figures that are exported, by their names in the table of all figures.
type Exported = (&'static str, fn(&InRow) -> Option<Spread>);
const EXPORTED: [Exported; 6] = [
    ("rps", |one| one.requests_per_s),
    ("mean", |one| one.mean_us),
    ("p50", |one| one.p50_us),
    ("p99", |one| one.p99_us),
    ("p99.9", |one| one.p99_9_us),
    ("server_cpu_us", |one| one.cpu_us),
];

impl Compared {
    /// Returns the conditions that must hold: each server was ready, and exact in each row.
    pub(super) fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        let mut case = |name: String, failure| cases.push(Case { name, failure });
        case("not interrupted".into(), self.interrupted.then(|| "it was interrupted".into()));
        for server in &self.servers {
            let name = &server.name;
            let failure = server.failure.as_ref().map(|why| format!("{name}: {why}"));
            case(format!("{name} runs"), failure);
        }
        for row in &self.rows {
            for one in &row.servers {
                let name = format!("{} in {}", self.servers[one.server].name, row.name);
                let why = one.why.as_deref().unwrap_or("see the report");
                let verdict = one.verdict.as_deref().unwrap_or("exact");
                case(
                    name.clone(),
                    (!one.is_exact()).then(|| format!("{name} is {verdict}: {why}")),
                );
            }
        }
        cases
    }

    /// Returns a set of findings per server and row; the first of them also holds the checks.
    pub(super) fn exported(&self) -> Vec<Findings> {
        let mut all: Vec<Findings> = Vec::new();
        for row in &self.rows {
            all.extend(row.servers.iter().map(|one| self.of(row, one)));
        }
        if all.is_empty() {
            all.push(Findings { name: NAME.into(), ..Findings::default() });
        }
        all[0].cases = self.cases();
        if let Some(last) = all.last_mut() {
            last.lines = self.remarks();
        }
        all
    }

    fn of(&self, row: &RowFound, one: &InRow) -> Findings {
        let server = &self.servers[one.server];
        let value = |(name, of): Exported| {
            let spread = of(one)?;
            let range = Some([spread.lowest, spread.highest]).filter(|_| self.rounds > 1);
            Finding::new(name, spread.median, range).ok()
        };
        let numbers = EXPORTED.map(|(_, of)| cell(of(one).map(|spread| spread.median)));
        let words =
            [row.name.clone(), server.name.clone(), one.verdict.clone().unwrap_or_default()];
        Findings {
            name: format!("{NAME}: {} in {}", server.name, row.name),
            values: EXPORTED.into_iter().filter_map(value).collect(),
            heads: vec![
                "row",
                "server",
                "verdict",
                "requests_per_s",
                "mean_us",
                "p50_us",
                "p99_us",
                "p99_9_us",
                "cpu_us",
            ],
            rows: vec![words.into_iter().chain(numbers).collect()],
            ..Findings::default()
        }
    }
}

const NAME: &str = "ringtally challenge";

#[cfg(test)]
mod tests {
    use super::super::tests::compared;

    #[test]
    fn each_server_has_its_figures_and_its_case() {
        let all = compared().exported();
        let names: Vec<&str> = all.iter().map(|one| one.name.as_str()).collect();
        let name = |server: &str| format!("ringtally challenge: {server} in saturated");
        assert_eq!(names, ["a", "b", "c"].map(name));
        let failed: Vec<&str> = all[0]
            .cases
            .iter()
            .filter(|case| case.failure.is_some())
            .map(|case| case.name.as_str())
            .collect();
        assert_eq!((failed, all[0].cases.len()), (vec!["d runs", "c in saturated"], 8));
        let rps = &all[1].values[0];
        assert_eq!((rps.figure.name, rps.value.micros, rps.range), ("rps", 5e4, Some([5e4, 5e4])));
        assert_eq!(all[2].rows[0][..4], ["saturated", "c", "wrong", "9000"]);
        assert!(all.iter().all(|one| one.rows[0].len() == one.heads.len()));
        assert!(!all[2].lines.is_empty());
    }
}
