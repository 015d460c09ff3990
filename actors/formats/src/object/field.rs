//! The fields of a record that the name of a member denotes, in the conventions of many loggers.

/// The fields that a member's name may denote.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Field {
    Time,
    Level,
    Message,
    Service,
    Host,
    /// An object of further attributes.
    Attributes,
}

/// Rank of `fields` among the names for attributes: a message in it is used only if the record has no other message.
pub const FIELDS: u8 = 1;

/// Returns the field that `name` denotes and its rank among the names of that field (the lowest usable one wins).
pub fn field(name: &str) -> Option<(Field, u8)> {
    use Field::{Attributes, Host, Level, Message, Service, Time};
    // By length first: most names are attributes and should be dismissed with few comparisons.
    let found = match name.len() {
        1 => match name {
            "t" => (Time, 7),
            "s" => (Level, 11), // MongoDB
            _ => return None,
        },
        2 => match name {
            "ts" => (Time, 0),
            "@t" => (Time, 8), // Serilog
            "@l" => (Level, 12),
            "@m" => (Message, 5),
            _ => return None,
        },
        3 => match name {
            "msg" => (Message, 1),
            "lvl" => (Level, 2),
            "log" => (Message, 2),
            "app" => (Service, 3),
            "pod" => (Host, 3),
            "@mt" => (Message, 6),
            _ => return None,
        },
        4 => match name {
            "time" => (Time, 1),
            "date" => (Time, 5),
            "body" => (Message, 3),
            "host" => (Host, 0),
            _ => return None,
        },
        5 => match name {
            "level" => (Level, 0),
            "event" => (Message, 4),
            _ => return None,
        },
        6 => match name {
            "fields" => (Attributes, FIELDS),
            _ => return None,
        },
        7 => match name {
            "message" => (Message, 0),
            "service" => (Service, 0),
            "program" => (Service, 5),
            "MESSAGE" => (Message, 7), // journald
            _ => return None,
        },
        8 => match name {
            "severity" => (Level, 1),
            "loglevel" => (Level, 3),
            "datetime" => (Time, 4),
            "hostname" => (Host, 1),
            "PRIORITY" => (Level, 10),
            _ => return None,
        },
        9 => match name {
            "timestamp" => (Time, 2),
            "eventTime" => (Time, 6),
            "levelname" => (Level, 8),
            "log.level" => (Level, 9),
            "host.name" => (Host, 2),
            "_HOSTNAME" => (Host, 4),
            _ => return None,
        },
        _ => match name {
            "attributes" => (Attributes, 0),
            "@timestamp" => (Time, 3),
            "application" => (Service, 4),
            "service.name" => (Service, 1),
            "service_name" => (Service, 2),
            "severity_number" => (Level, 4),
            "severityNumber" => (Level, 5),
            "severity_text" => (Level, 6),
            "severityText" => (Level, 7),
            "short_message" => (Message, 8), // GELF
            "textPayload" => (Message, 9),   // Google Cloud
            "SYSLOG_IDENTIFIER" => (Service, 6),
            "__REALTIME_TIMESTAMP" => (Time, 9),
            _ => return None,
        },
    };
    Some(found)
}

/// Returns a number below 128 for a name: unique and below 64 if it denotes a field, otherwise shared by several names.
pub fn slot(name: &str, role: Option<(Field, u8)>) -> u8 {
    match role {
        Some((field, rank)) => (field as u8 * 10 + rank) % 64,
        None => {
            let end = |byte: Option<&u8>| byte.map_or(0, |&byte| usize::from(byte));
            let name = name.as_bytes();
            let mix = name.len() * 7 + end(name.first()) * 3 + end(name.last());
            64 + u8::try_from(mix % 64).expect("below 64")
        }
    }
}
