//! Parses server-sent events, as sent by `/api/v1/tail`, from pieces of any size. Pure.

/// Maximum length of an event: far above that of the longest record.
pub const EVENT_BYTES_MAX: usize = 32 << 20;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Type: `record`, `dropped` or `gap`; empty if the event carries only the position of the stream.
    pub name: String,
    /// The token to resume after the event, if it has one.
    pub id: Option<String>,
    /// Data.
    pub data: String,
}

/// An event, or a line of one, is longer than [`EVENT_BYTES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event is longer than {EVENT_BYTES_MAX} bytes")]
pub struct TooLong;

/// Incremental parser: holds the incomplete event.
#[derive(Debug, Default)]
pub struct Events {
    line: Vec<u8>,
    event: Event,
    has_fields: bool,
}

impl Events {
    /// Returns the events that `piece` completes.
    ///
    /// # Errors
    /// An event is too long.
    pub fn push(&mut self, piece: &[u8]) -> Result<Vec<Event>, TooLong> {
        let mut events = Vec::new();
        let mut rest = piece;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            self.line.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            let line = std::mem::take(&mut self.line);
            events.extend(self.parse_line(&String::from_utf8_lossy(&line)));
            self.check()?;
        }
        self.line.extend_from_slice(rest);
        self.check()?;
        Ok(events)
    }

    fn check(&self) -> Result<(), TooLong> {
        if self.line.len() + self.event.data.len() > EVENT_BYTES_MAX { Err(TooLong) } else { Ok(()) }
    }

    fn parse_line(&mut self, line: &str) -> Option<Event> {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            let complete = std::mem::take(&mut self.has_fields);
            return complete.then(|| std::mem::take(&mut self.event));
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.name),
            "id" => self.event.id = Some(value.to_owned()),
            "data" if self.event.data.is_empty() => value.clone_into(&mut self.event.data),
            "data" => {
                self.event.data.push('\n');
                self.event.data.push_str(value);
            }
            // Comments, and the reconnection delay.
            _ => return None,
        }
        self.has_fields = true;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "retry: 1000\n\nid: a.1\n\n:\n\nevent: record\nid: a.2\ndata: {\"message\":\"ä\"}\n\n\
                          event: dropped\r\ndata: {\"dropped\":1}\r\n\r\ndata: x\ndata: y\n\nevent: rec";

    fn event(name: &str, id: Option<&str>, data: &str) -> Event {
        Event { name: name.to_owned(), id: id.map(ToOwned::to_owned), data: data.to_owned() }
    }

    #[test]
    fn a_stream_is_parsed_from_pieces_of_any_size() {
        let expect = [
            event("", Some("a.1"), ""),
            event("record", Some("a.2"), "{\"message\":\"ä\"}"),
            event("dropped", None, "{\"dropped\":1}"),
            event("", None, "x\ny"),
        ];
        for size in 1..STREAM.len() {
            let mut events = Events::default();
            let read: Vec<Event> =
                STREAM.as_bytes().chunks(size).flat_map(|piece| events.push(piece).unwrap()).collect();
            assert_eq!(read, expect, "in pieces of {size}");
        }
    }

    #[test]
    fn an_endless_event_is_rejected() {
        let mut events = Events::default();
        let piece = vec![b'x'; 1 << 20];
        assert!((0..64).any(|_| events.push(&piece) == Err(TooLong)));
        let mut events = Events::default();
        let line = format!("data: {}\n", "x".repeat(1 << 20));
        assert!((0..64).any(|_| events.push(line.as_bytes()) == Err(TooLong)));
    }
}
