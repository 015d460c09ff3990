//! Elasticsearch's bulk API: an action line followed by its document.
//!
//! - Without a service in the document, the service is the index name without its trailing date or version.
//! - A document that is not JSON is kept whole, as any line is.

use std::sync::Arc;

use crate::format::Format;
use crate::json::walk::{members, string};
use crate::json::write::push_member;
use crate::lines::parser::LineParser;
use crate::object::Scratch;
use crate::report::{BulkItem, ItemOutcome};
use crate::sink::{NAME_BYTES_MAX, Sink};

/// Maximum number of items in a body, since the response has an entry for each.
const ITEMS_MAX: usize = 1 << 16;

/// An action line.
struct Action {
    name: &'static str,
    index: Arc<str>,
    id: Option<String>,
}

/// Parses a bulk request.
///
/// # Errors
/// A description of the first error.
pub fn parse(body: &str, line_bytes_max: usize, sink: &mut Sink<'_>) -> Result<(), String> {
    let mut scratch = Scratch::default();
    let mut lines = LineParser::new(Format::Ndjson);
    let default_index: Arc<str> = sink.index().into();
    let mut last_index = Arc::clone(&default_index);
    let mut waiting: Option<Action> = None;
    for line in body.split('\n') {
        sink.line += 1;
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let Some(action) = waiting.take() else {
            let action = read_action(line, &default_index, &mut last_index, sink)
                .map_err(|error| format!("malformed action/metadata line [{}]: {error}", sink.line))?;
            match action.name {
                "delete" => answer(sink, action, ItemOutcome::Unsupported)?,
                _ => waiting = Some(action),
            }
            continue;
        };
        if action.name == "update" {
            answer(sink, action, ItemOutcome::Unsupported)?;
        } else if line.len() > line_bytes_max {
            sink.discard_too_long(line.len(), line_bytes_max);
            answer(sink, action, ItemOutcome::TooLong)?;
        } else {
            surround(&action, sink);
            lines.parse(line, &mut scratch, sink);
            sink.check_full()?;
            answer(sink, action, ItemOutcome::Stored)?;
        }
    }
    sink.envelope.clear();
    match waiting {
        Some(action) => Err(format!("the last action, {}, has no document", action.name)),
        None if sink.report.items.is_empty() => Err("the body contains no actions".to_owned()),
        None => Ok(()),
    }
}

/// `last_index` avoids a copy of the name where consecutive actions have the same one.
fn read_action(
    line: &str,
    default_index: &Arc<str>,
    last_index: &mut Arc<str>,
    sink: &mut Sink<'_>,
) -> Result<Action, String> {
    let mut actions = 0;
    let mut read = Action { name: "", index: Arc::clone(default_index), id: None };
    members(line, |name, details| {
        actions += 1;
        read.name = match &*name {
            "create" => "create",
            "index" => "index",
            "update" => "update",
            "delete" => "delete",
            _ => return Err(format!("unknown action {name:?}: expected create or index")),
        };
        let mut text = String::new();
        members(details, |name, value| {
            let counts = &mut sink.sanitized;
            match &*name {
                "_index" => {
                    let index = string(value, &mut text, counts).filter(|index| index.len() <= NAME_BYTES_MAX);
                    let index = index.ok_or("invalid _index: expected a string of at most 255 bytes")?;
                    if **last_index != *index {
                        *last_index = index.into();
                    }
                    read.index = Arc::clone(last_index);
                }
                "_id" => read.id = string(value, &mut text, counts).map(ToOwned::to_owned),
                _ => {}
            }
            Ok(())
        })
    })?;
    if actions == 1 { Ok(read) } else { Err("expected one action".to_owned()) }
}

/// Sets the envelope of a document from its action.
fn surround(action: &Action, sink: &mut Sink<'_>) {
    let envelope = &mut sink.envelope;
    envelope.clear();
    if !action.index.is_empty() {
        push_member(&mut envelope.attributes, "index", &action.index);
        envelope.service.push_str(without_version(&action.index));
    }
    if let Some(id) = &action.id {
        push_member(&mut envelope.attributes, "_id", id);
    }
}

/// The services of `logstash-2026.11.21` and `filebeat-8.19.0` are logstash and filebeat.
fn without_version(index: &str) -> &str {
    let stem = index.trim_end_matches(|character: char| character.is_ascii_digit() || matches!(character, '.' | '-'));
    if stem.len() < index.len() && index[stem.len()..].starts_with('-') && !stem.is_empty() { stem } else { index }
}

fn answer(sink: &mut Sink<'_>, action: Action, outcome: ItemOutcome) -> Result<(), String> {
    let Action { name, index, .. } = action;
    if sink.report.items.len() == ITEMS_MAX {
        return Err(format!("more than {ITEMS_MAX} items: send fewer in one body"));
    }
    if outcome == ItemOutcome::Unsupported {
        sink.report.rejected += 1;
    }
    sink.report.items.push(BulkItem { action: name, index, outcome });
    Ok(())
}
