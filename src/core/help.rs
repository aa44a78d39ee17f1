//! `?help=1`: what the route table says, as text for people.

use serde::Serialize;

use super::{engine::Engine, failure::Failure, reply::Reply};

#[derive(Serialize)]
struct Help {
    help: String,
    see_also: Option<Vec<String>>,
    openapi: Option<()>,
}

/// The help text of a route, or the list of all routes of the mount.
pub fn answer(engine: &dyn Engine, route: Option<usize>) -> Result<Reply, Failure> {
    let routes = engine.describe();
    let mut help = String::new();
    match route.and_then(|route| routes.get(route)) {
        Some(route) => {
            help.push_str(&format!("{}\n\n{}\n", route.patterns.join("\n"), route.help));
            for (verb, summary, fields) in &route.operations {
                help.push_str(&format!("\n{verb:?}: {summary}\n"));
                for field in *fields {
                    help.push_str(&format!("    {} ({:?}):{}\n", field.name, field.kind, field.description));
                }
            }
        }
        None => {
            help.push_str("The following paths are supported by this mount:\n");
            for route in &routes {
                for pattern in route.patterns {
                    help.push_str(&format!("\n    {pattern}\n        {}\n", route.help));
                }
            }
        }
    }
    Reply::bare(&Help { help, see_also: None, openapi: None })
}
