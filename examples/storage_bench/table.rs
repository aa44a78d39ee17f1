//! Figures that a step prints (`name<TAB>value`), and the table of them with one column per engine.

use sos::storage::Kind;

use crate::name;

/// What one step found, in the order it was printed.
pub(crate) struct Figures(Vec<(String, String)>);

impl Figures {
    pub(crate) fn read(printed: &str) -> Self {
        let pairs = printed.lines().filter_map(|line| line.split_once('\t'));
        Self(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// The same figures with the name of what they belong to.
    pub(crate) fn under(self, prefix: &str) -> Self {
        Self(self.0.into_iter().map(|(name, value)| (format!("{prefix}{name}"), value)).collect())
    }
}

/// One part of the report.
pub(crate) struct Table {
    title: String,
    engines: Vec<Kind>,
    rows: Vec<(String, Vec<String>)>,
}

impl Table {
    pub(crate) fn new(title: &str, engines: &[Kind]) -> Self {
        Self { title: title.to_owned(), engines: engines.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn add(&mut self, kind: Kind, figures: Figures) {
        let Some(column) = self.engines.iter().position(|engine| *engine == kind) else { return };
        for (name, value) in figures.0 {
            let known = self.rows.iter().position(|(row, _)| *row == name);
            let at = known.unwrap_or_else(|| {
                self.rows.push((name, vec![String::new(); self.engines.len()]));
                self.rows.len() - 1
            });
            if let Some(cell) = self.rows.get_mut(at).and_then(|(_, cells)| cells.get_mut(column)) {
                *cell = value;
            }
        }
    }

    /// The table in Markdown.
    pub(crate) fn text(&self) -> String {
        let names: Vec<_> = self.engines.iter().map(|kind| name(*kind).to_owned()).collect();
        let mut lines = vec![format!("### {}\n", self.title), row("", &names), row("---", &vec!["---:".to_owned(); names.len()])];
        lines.extend(self.rows.iter().map(|(name, cells)| row(name, cells)));
        lines.join("\n") + "\n"
    }
}

fn row(name: &str, cells: &[String]) -> String {
    format!("| {name} | {} |", cells.join(" | "))
}
