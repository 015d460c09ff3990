//! Server-sent events, line by line. Pure.

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    /// What kind.
    pub name: String,
    /// The token to go on after it; empty where it has none.
    pub id: String,
    /// What it says.
    pub data: String,
}

/// Puts lines together.
#[derive(Debug, Default)]
pub(super) struct Events {
    open: Event,
}

impl Events {
    /// Takes the next line, without its end; gives an event that it completes.
    pub(super) fn line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.open);
            return (!event.data.is_empty()).then_some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.open.name),
            "id" => value.clone_into(&mut self.open.id),
            "data" => {
                if !self.open.data.is_empty() {
                    self.open.data.push('\n');
                }
                self.open.data.push_str(value);
            }
            _ => {} // comments, and what is not for us
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_ends_with_an_empty_line_and_comments_are_none() {
        let mut events = Events::default();
        let text = ":\n\nretry: 1000\n\nevent: record\nid: a.1\ndata: {}\n\ndata: one\ndata:two\n\n";
        let found: Vec<Event> = text.lines().filter_map(|line| events.line(line)).collect();
        let event = |name: &str, id: &str, data: &str| Event { name: name.into(), id: id.into(), data: data.into() };
        assert_eq!(found, [event("record", "a.1", "{}"), event("", "", "one\ntwo")]);
    }
}
